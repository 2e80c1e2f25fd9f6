"""The link models are data: their keys, their ranges, and the published tables of all_reduce_perf that they are to reproduce."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "gpualloc" / "rehearsal" / "links").glob("*.yaml"))
KEYS = {
    "name",
    "title",
    "level",
    "datasheet_gb_s",
    "busbw_gb_s",
    "base_latency_us",
    "hop_latency_us",
    "efficiency",
    "sources",
}
NODE = {"nvlink3", "nvlink4", "nvlink5", "pcie4", "pcie5"}
NETWORK = {
    "ethernet_10g",
    "ethernet_25g",
    "ethernet_100g",
    "ethernet_200g",
    "ethernet_400g",
    "ib_hdr",
    "ib_ndr",
}
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def load(name: str) -> dict:
    return yaml.safe_load((ROOT / "gpualloc" / "rehearsal" / "links" / f"{name}.yaml").read_text(encoding="utf-8"))


def number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def curve_nics(link: dict) -> int:
    """The NICs of a node that a network link's efficiency holds for."""
    nics = link.get("nics_per_node", 1)
    return 8 if nics == "per_gpu" else nics


def share(efficiency: list[list[float]], size: float) -> float:
    """Linear in the logarithm of the size; as the first knot below it, 1 beyond the last."""
    if size > efficiency[-1][0]:
        return 1.0
    if size <= efficiency[0][0]:
        return efficiency[0][1]
    for (low, a), (high, b) in itertools.pairwise(efficiency):
        if size <= high:
            return a + (b - a) * math.log(size / low) / math.log(high / low)
    raise AssertionError(size)


def all_reduce_us(link: dict, ranks: int, size: int, nics: int | None = None, busbw: float | None = None) -> float:
    nics = nics or curve_nics(link)
    hop = link["hop_latency_us"]
    hops = min(2 * (ranks - 1) * hop["ring"], 2 * math.ceil(math.log2(ranks)) * hop["tree"])
    rate = (busbw or link["busbw_gb_s"]) * nics * 1e3  # bytes per microsecond
    efficiency = share(link["efficiency"], size * curve_nics(link) / nics)
    return link["base_latency_us"] + hops + 2 * (ranks - 1) / ranks * size / (rate * efficiency)


def test_every_link_is_there() -> None:
    assert {path.stem for path in FILES} == NODE | NETWORK


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_keys_and_ranges(path: Path) -> None:
    link = yaml.safe_load(path.read_text(encoding="utf-8"))
    network = path.stem in NETWORK
    of_many = {"efficiency_nics"} if link.get("nics_per_node") == "per_gpu" else set()
    assert set(link) == KEYS | of_many | ({"nics_per_node"} if network else set())
    assert link["name"] == path.stem
    assert link["level"] == ("network" if network else "node")
    assert isinstance(link["title"], str)
    assert link["title"].strip()
    assert number(link["datasheet_gb_s"])
    assert number(link["busbw_gb_s"])
    assert 0 < link["busbw_gb_s"] < link["datasheet_gb_s"] <= 1000
    if network:
        nics = link["nics_per_node"]
        assert nics == "per_gpu" or (type(nics) is int and nics >= 1)
    assert number(link["base_latency_us"])
    assert 1 <= link["base_latency_us"] <= 100
    assert set(link["hop_latency_us"]) == {"ring", "tree"}
    for value in link["hop_latency_us"].values():
        assert number(value)
        assert 0.1 <= value <= 200


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_efficiency_rises(path: Path) -> None:
    knots = yaml.safe_load(path.read_text(encoding="utf-8"))["efficiency"]
    assert len(knots) >= 4
    for size, value in knots:
        assert type(size) is int
        assert size >= KIB
        assert number(value)
        assert 0 < value <= 1
    assert knots[-1][1] == 1
    assert all(b[0] > a[0] and b[1] >= a[1] for a, b in itertools.pairwise(knots))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_a_larger_message_takes_no_less_time(path: Path, ranks: int) -> None:
    link = yaml.safe_load(path.read_text(encoding="utf-8"))
    sizes = [int(KIB * 2 ** (step / 8)) for step in range(8 * 24)]
    times = [all_reduce_us(link, ranks, size) for size in sizes]
    assert all(after >= before for before, after in itertools.pairwise(times))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_sources(path: Path) -> None:
    sources = yaml.safe_load(path.read_text(encoding="utf-8"))["sources"]
    assert all(isinstance(source, str) and len(source) > 20 for source in sources)
    for word in ("datasheet", "busbw", "latency", "efficiency"):
        assert any(word in source for source in sources), word


@dataclass
class Table:
    """A published table: microseconds of an all-reduce by its bytes. The links' sources say where it is from."""

    link: str
    name: str
    ranks: int
    us: dict[int, float]
    nics: int | None = None
    busbw: float | None = None  # where only the curve's shape is taken from it: its own plateau
    tolerance: float = 0.2


def by_busbw(ranks: int, values: dict[int, float]) -> dict[int, float]:
    return {size: 2 * (ranks - 1) / ranks * size / (value * 1e3) for size, value in values.items()}


def doubling(first: int, *us: float) -> dict[int, float]:
    return {first << step: value for step, value in enumerate(us)}


TABLES = [
    Table(
        "nvlink3",
        "8 x A100, one process per GPU",
        8,
        doubling(MIB, 37.33, 63.11, 84.77, 131.1, 220.5, 353.9, 579.2, 1157.6, 2169.8, 4204, 8212.6, 16274, 32200, 64200),
    ),
    Table(
        "nvlink3",
        "8 x A100, one process",
        8,
        by_busbw(8, doubling(4 * MIB, 72.33, 109.93, 106.16, 138.49, 171.54, 176.92, 194.07, 222.72, 229.04, 231.41, 233.88)),
    ),
    Table("nvlink3", "4 x A100", 4, doubling(4 * MIB, 86.22, 132.7, 188.7, 284.9, 537.4, 974.9)),
    Table(
        "nvlink4",
        "2 x H100, ring",
        2,
        doubling(2 * MIB, 30.67, 35.13, 47.86, 73.28, 127.7, 223.4, 415.0, 792.7, 1541.7, 2996.1),
    ),
    # NVLS from 2 MiB on, and beyond 32 MiB faster than any ring
    Table("nvlink4", "8 x H100", 8, doubling(MIB, 28.56, 43.45, 55.44, 84.29, 124.0, 198.6)),
    Table("nvlink4", "8 x H200, NVLS off", 8, by_busbw(8, {8 * GIB: 365.6, 16 * GIB: 367.2})),
    Table(
        "nvlink5",
        "8 x B200",
        8,
        by_busbw(8, doubling(8 * MIB, 182.77, 265.67, 340.13, 419.49, 591.81, 657.26)),
    ),
    Table("nvlink5", "8 x GB200 in two trays", 8, doubling(MIB, 32.18, 35.89, 52.72, 67.94, 102.8)),
    Table("nvlink5", "8 x B200, NVLS off", 8, by_busbw(8, {8 * GIB: 682.2})),
    Table("pcie4", "8 x RTX 4090", 8, doubling(MIB, 222.8, 373.4, 580.8, 1041.8, 1972.8, 3905.6, 7907, 16253)),
    Table("ethernet_10g", "2 x A10G in the cloud, shape", 2, doubling(MIB, 1762, 2918, 5209, 12668), busbw=0.76),
    Table("ethernet_25g", "2 x A10G, EFA", 2, doubling(MIB, 583.4, 983.3, 1745.4, 3116.1, 5966.3, 11390, 21934, 43014)),
    Table(
        "ethernet_100g",
        "2 x L40S, shape",
        2,
        doubling(MIB, 166.4, 297.6, 556.3, 1070, 2128.7, 4243),
        busbw=8.1,
    ),
    Table("ethernet_200g", "8 ranks, 4 NICs", 8, by_busbw(8, {512 * MIB: 93.5, 8 * GIB: 95.5}), nics=4),
    Table(
        "ethernet_400g",
        "2 nodes of 4 x H100, 4 NICs",
        8,
        doubling(4 * MIB, 103.1, 157.1, 244.7, 432.4, 825.4, 1493.1, 2946.6),
        nics=4,
    ),
    Table(
        "ib_hdr",
        "2 nodes of 8 x A100",
        16,
        doubling(MIB, 96.39, 128.6, 148.1, 211.1, 333.4, 615.6, 932.6, 1672.7, 3013.5, 5702, 11063, 21637, 42758, 85129),
    ),
    Table("ib_ndr", "4 nodes of 8 x H100", 32, by_busbw(32, {16 * GIB: 365.84})),
]
SMALL = [  # 8 bytes: latency alone. (link, ranks, microseconds, tolerance)
    ("nvlink3", 8, 18.75, 0.1),
    ("nvlink4", 8, 12.9, 0.2),
    ("nvlink5", 8, 21.57, 0.1),
    ("pcie4", 8, 38.83, 0.1),
    ("ethernet_25g", 2, 64.9, 0.1),
    ("ethernet_100g", 2, 12.3, 0.1),
    ("ib_hdr", 16, 37.3, 0.1),
    ("ib_ndr", 128, 62.0, 0.1),
]


@pytest.mark.parametrize("table", TABLES, ids=lambda table: f"{table.link}: {table.name}")
def test_published_tables(table: Table) -> None:
    link = load(table.link)
    for size, us in table.us.items():
        assert size >= MIB
        model = all_reduce_us(link, table.ranks, size, table.nics, table.busbw)
        assert us / model == pytest.approx(1, abs=table.tolerance), f"{size} bytes: {us} us published, {model:.1f} us modelled"


@pytest.mark.parametrize(("name", "ranks", "us", "tolerance"), SMALL)
def test_published_latency(name: str, ranks: int, us: float, tolerance: float) -> None:
    assert all_reduce_us(load(name), ranks, 8) == pytest.approx(us, rel=tolerance)


def half_of_busbw(link: dict, ranks: int) -> float:
    low, high = 1.0, 64.0 * GIB
    for _ in range(60):
        size = math.sqrt(low * high)
        reached = 2 * (ranks - 1) / ranks * size / (all_reduce_us(link, ranks, int(size)) * 1e3)
        if reached < link["busbw_gb_s"] * curve_nics(link) / 2:
            low = size
        else:
            high = size
    return high


def test_the_documents_table_has_the_files_figures() -> None:
    rows = {}
    for line in (ROOT / "docs" / "links.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            rows[cells[0].strip("`")] = cells[1:]
    assert set(rows) == NODE | NETWORK
    for name, (datasheet, busbw, base, hops, half, source) in rows.items():
        link = load(name)
        hop = link["hop_latency_us"]
        assert float(datasheet) == link["datasheet_gb_s"]
        assert float(busbw) == link["busbw_gb_s"]
        assert float(base) == link["base_latency_us"]
        assert [float(value) for value in hops.split("/")] == [hop["ring"], hop["tree"]]
        assert float(half) == pytest.approx(half_of_busbw(link, 8) / MIB, rel=0.06)
        assert source
