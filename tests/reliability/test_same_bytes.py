"""D1 with every change: two surroundings and the control; all of them are in `benchmarks/reliability.py`."""

from pathlib import Path

from tests.reliability import same_bytes


def test_the_same_command_gives_the_same_bytes(tmp_path: Path) -> None:
    data = same_bytes.images(tmp_path / "images")
    one, other = (same_bytes.surroundings(tmp_path, data, number, steps=6) for number in (0, 2))
    assert one == other
    assert one.keys() == {"pretraining", "diffusion"}
    broken = same_bytes.surroundings(tmp_path, data, 4, steps=6, broken=True)
    assert broken["diffusion"] != one["diffusion"]  # the control: files in the order of a set
