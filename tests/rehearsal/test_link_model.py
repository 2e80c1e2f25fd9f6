"""Which links there are, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpualloc.errors import UsageError
from gpualloc.rehearsal.cluster import make_cluster
from gpualloc.rehearsal.link_model import calibrated_folder, link_names, load_link, write_link
from tests.rehearsal.clusters import make_link


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUALLOC_STORE", str(tmp_path / "store" / "results.sqlite"))


def test_shipped_links_are_known_by_name() -> None:
    assert {"nvlink3", "nvlink4", "nvlink5", "pcie4", "pcie5", "ib_hdr", "ib_ndr", "ethernet_10g", "ethernet_400g"} <= set(link_names())
    assert load_link("nvlink4").level == "node"


def test_a_calibrated_link_comes_before_a_shipped_one() -> None:
    write_link(make_link(name="nvlink4", title="ours"), calibrated_folder() / "nvlink4.yaml")
    assert load_link("nvlink4").title == "ours"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not YAML"),
        ("name: x", "not a link model: title"),
        ("- 1", "not a link model"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        load_link(str(file))
    assert "broken.yaml" in str(caught.value)


def test_curves_are_in_order() -> None:
    with pytest.raises(ValueError, match="ascending"):
        make_link(efficiency=[(2.0, 0.5), (1.0, 1.0)])
    with pytest.raises(ValueError, match="above 1"):
        make_link(efficiency=[(2.0, 1.5)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"link": None}, "--link nvlink4"),
        ({"link": "nvlink9"}, "no link 'nvlink9'"),
        ({"link": "nvlink4", "sizes": [16]}, "--network ib_ndr"),
        ({"link": "nvlink4", "network": "ib_ndr", "sizes": [12]}, "do not fill nodes of 8"),
        ({"link": "ib_ndr", "gpus_per_node": 4}, "network between nodes"),
        ({"link": "nvlink4", "network": "pcie4", "sizes": [16]}, "link inside a node"),
        ({"link": "missing.yaml"}, "cannot read"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(arguments: dict[str, object], message: str) -> None:
    fields = {"sizes": [2], "gpus_per_node": None if "gpus_per_node" in arguments else 8, "network": None, **arguments}
    sizes = fields.pop("sizes")
    with pytest.raises(UsageError, match=message):
        make_cluster(sizes, **fields)  # type: ignore[arg-type]


def test_a_network_alone_means_nodes_of_one() -> None:
    assert make_cluster([2, 3], gpus_per_node=None, link="ethernet_10g", network=None) == (1, None, "ethernet_10g")
    assert make_cluster([2], gpus_per_node=None, link="nvlink4", network=None) == (8, "nvlink4", None)
