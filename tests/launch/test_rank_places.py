"""Which rank the others waited for, from the places that ranks keep beside their logs."""

from pathlib import Path

import pytest

from gpualloc.launch.rank_places import RankPlace, describe_missing


def at(folder: Path, rank: int, *, batches: int, steps: int) -> None:
    place = RankPlace({"GPUALLOC_LOG_FOLDER": str(folder), "RANK": str(rank)})
    for number in range(batches):
        place.take_batch()
        if number < steps:
            place.begin_step()


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ([(4, 4), (4, 3), (4, 4)], "it waited for rank 1, which took batch 4 and did not come to step() with it"),
        ([(1, 1), (0, 0)], "it waited for rank 1, which took no batch"),
        (
            [(2, 2), (4, 3), (4, 4)],
            "it waited for rank 0, which took no batch after its batch 2, rank 1, which took batch 4 and did not come to step() with it",
        ),
        ([(4, 4), (4, 4)], "all ranks are in the same pass: one of them hangs inside it"),
        ([(4, 4)], ""),
        ([], ""),
    ],
)
def test_those_behind_are_named_with_what_they_did_last(tmp_path: Path, places: list[tuple[int, int]], said: str) -> None:
    for rank, (batches, steps) in enumerate(places):
        at(tmp_path, rank, batches=batches, steps=steps)
    assert describe_missing(tmp_path) == said


def test_a_new_attempt_begins_anew_and_other_files_do_not_count(tmp_path: Path) -> None:
    at(tmp_path, 0, batches=9, steps=9)
    at(tmp_path, 0, batches=1, steps=1)
    at(tmp_path, 1, batches=1, steps=0)
    (tmp_path / "rank2.place").write_bytes(b"half")
    (tmp_path / "ranks.place").write_bytes(bytes(8))
    assert describe_missing(tmp_path) == "it waited for rank 1, which took batch 1 and did not come to step() with it"


def test_a_place_that_cannot_be_kept_stops_no_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    at(tmp_path / "file", 0, batches=2, steps=2)
    RankPlace({}).take_batch()
