"""Every refusal that comes before a process is started, and that it comes without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gpualloc.errors import UsageError
from gpualloc.workloads import check_data, open_batches
from tests.workloads.cases import image_case


def check(data: str, workload: str = "image", **changes: Any) -> None:
    arguments: dict[str, Any] = {"per_device_batch_size": 2, "world_size": 2, "image_size_px": None, "sequence_length": None}
    arguments["image_size_px" if workload == "image" else "sequence_length"] = 32
    check_data(data, workload, **{**arguments, **changes})


def refusal(data: str, workload: str = "image", **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        check(data, workload, **changes)
    message = str(caught.value)
    assert "\n" not in message
    message.encode()  # any stream takes it
    return message


def test_good_data_passes(image_root: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.unknown"  # a file named outright may end as it likes
    text.write_bytes(b"x" * 2 * 2 * 33)
    check("synthetic")
    check("synthetic", "llm")
    check("digits")
    check(str(image_root))
    check(str(text), "llm")


@pytest.mark.parametrize(
    ("workload", "changes", "message"),
    [
        ("audio", {}, "workload 'audio' is unknown; choose image or llm"),
        ("image", {"per_device_batch_size": 0}, "per_device_batch_size is 0; choose 1 or more"),
        ("image", {"world_size": -1}, "world_size is -1; choose 1 or more"),
        ("image", {"image_size_px": None}, "image_size_px is None; choose 32 or more, up to 4096"),
        ("image", {"image_size_px": 31}, "image_size_px is 31; choose 32 or more, up to 4096"),
        ("image", {"image_size_px": 10**9}, "image_size_px is 1000000000; choose 32 or more, up to 4096"),
        ("llm", {"sequence_length": None}, "sequence_length is None; choose 1 or more, up to 131072"),
        ("llm", {"sequence_length": 0}, "sequence_length is 0; choose 1 or more, up to 131072"),
        (
            "image",
            {"per_device_batch_size": 1},
            "batch normalisation cannot train on 1 image of 32 px, .* use per_device_batch_size 2 or larger",
        ),
    ],
)
def test_figures_that_cannot_be_meant(workload: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        check("synthetic", workload, **changes)


def test_one_image_of_33_px_can_be_trained_on() -> None:
    check("synthetic", image_size_px=33, per_device_batch_size=1)


def test_digits() -> None:
    assert refusal("digits", "llm").startswith("data 'digits' is images and the workload is llm; use 'synthetic' or the path")
    check("digits", per_device_batch_size=599, world_size=3)
    assert refusal("digits", per_device_batch_size=600, world_size=3) == (
        "the data holds 1797 samples and one step of 3 ranks with per_device_batch_size 600 takes 1800; "
        "lower either until their product is 1797 or less, or use more data"
    )


@pytest.mark.parametrize(("data", "workload"), [("digits", "image"), ("folder", "image")])
def test_a_missing_package_is_named(data: str, workload: str, image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("sklearn", "sklearn.datasets", "PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, module, None)
    path = "digits" if data == "digits" else str(image_root)
    expected = (
        f"this data needs {'scikit-learn' if data == 'digits' else 'Pillow'}, which cannot be imported here; "
        "run: pip install 'gpualloc[data]'"
    )
    assert refusal(path, workload) == expected
    with pytest.raises(UsageError) as caught:
        open_batches(image_case(data=path), rank=0, pin_memory=False)
    assert str(caught.value) == expected


def test_a_path_that_is_missing_or_of_the_wrong_kind(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"x")
    assert refusal("imagenet") == "data 'imagenet' does not exist; give 'synthetic', 'digits' or a path that does"
    assert refusal("", "llm") == "data '' does not exist; give 'synthetic' or a path that does"
    assert "does not exist" in refusal(str(tmp_path / "loop"))
    assert "does not exist" in refusal("nul\0byte")
    assert "does not exist" in refusal("not-utf-8-\udcff")
    assert refusal(str(tmp_path / "file")).startswith(f"image data '{tmp_path}/file' is not a folder; images are read from a folder of")
    assert refusal(str(tmp_path / "pipe"), "llm").startswith(f"text data '{tmp_path}/pipe' is neither a file nor a folder; name a text")


def test_a_folder_without_classes(tmp_path: Path) -> None:
    assert f"image data '{tmp_path}' has 0 class folders" in refusal(str(tmp_path))
    (tmp_path / "only").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "only" / "1.png")
    assert f"image data '{tmp_path}' has 1 class folders" in refusal(str(tmp_path))


def test_an_empty_class_folder(image_root: Path) -> None:
    (image_root / "empty").mkdir()
    (image_root / "empty" / "notes.txt").write_text("no image")
    assert refusal(str(image_root)).startswith(f"class folder '{image_root}/empty' holds no image (.jpg, ")


@pytest.mark.parametrize(("workload", "call"), [("image", "scandir"), ("llm", "walk")])
def test_a_folder_that_may_not_be_listed(image_root: Path, monkeypatch: pytest.MonkeyPatch, workload: str, call: str) -> None:
    def refuse(folder: str) -> Any:
        raise PermissionError(13, "Permission denied", folder)

    monkeypatch.setattr(os, "scandir", refuse)  # os.walk calls it too; as root no real folder refuses
    assert refusal(str(image_root), workload) == f"cannot list folder '{image_root}': Permission denied; check its permissions"


@pytest.mark.parametrize("content", [b"", b"GIF89a or what", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image(image_root: Path, content: bytes) -> None:
    path = image_root / "square" / "3.bmp"
    path.write_bytes(content)
    message = refusal(str(image_root))
    assert message == f"cannot read image '{path}': it is not JPEG, PNG, BMP, WEBP; replace the file or remove it"


def test_headers_of_a_large_folder_are_sampled_over_all_classes(image_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("gpualloc.workloads.data._MAX_HEADERS_CHECKED", 4)
    monkeypatch.setattr("gpualloc.workloads.data.check_image_headers", opened.extend)
    check(str(image_root))
    assert len(opened) == 4
    assert {Path(path).parent.name for path in opened} == {"circle", "line", "square"}


def test_more_images_needed_than_there_are(image_root: Path) -> None:
    check(str(image_root), per_device_batch_size=5, world_size=3)
    assert "holds 15 samples and one step of 2 ranks" in refusal(str(image_root), per_device_batch_size=8, world_size=2)


def test_text_that_is_empty_or_too_short(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"")
    assert refusal(str(path), "llm") == (
        f"text data '{path}' holds 0 bytes and one sample takes 33; lower sequence_length or use more text"
    )
    path.write_bytes(b"x" * 32)
    assert "holds 32 bytes and one sample takes 33" in refusal(str(path), "llm")
    path.write_bytes(b"x" * (4 * 33 - 1))
    assert "the data holds 3 samples" in refusal(str(path), "llm")


def test_a_folder_without_text(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    assert refusal(str(tmp_path), "llm").startswith(f"text data '{tmp_path}' holds no text file; files with these endings are read: .txt, ")


def test_checking_needs_no_torch(image_root: Path) -> None:
    """Neither for images nor text, nor to describe the data."""
    code = (
        "import sys\n"
        "from gpualloc.workloads import MODELS, check_data, describe_data\n"
        "from tests.workloads.cases import image_case\n"
        "figures = dict(per_device_batch_size=2, world_size=2, image_size_px=32, sequence_length=1)\n"
        "for data, workload in (('digits', 'image'), (sys.argv[1], 'image'), (sys.argv[2], 'llm')):\n"
        "    check_data(data, workload, **figures)\n"
        "describe_data(image_case(data=sys.argv[1]))\n"
        "print('gpt2' in MODELS, [name for name in ('torch', 'sklearn', 'numpy') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(image_root), __file__], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("True []", "")


def test_public_names_resolve() -> None:
    import gpualloc.workloads as workloads

    assert sorted(dir(workloads)) == sorted(workloads.__all__)
    for name in workloads.__all__:
        assert getattr(workloads, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'build_modle'"):
        _ = workloads.build_modle
