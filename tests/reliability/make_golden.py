"""Writes the golden checkpoint of the present format: `python -m tests.reliability.make_golden`.

A released one is never written again: a later format gets a folder of its own beside it.
"""

import json
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from epg.checkpoint.manifest import FORMAT
from epg.config.settings import RunConfig
from epg.runs import train
from tests.training.test_loop import tiny

FOLDER = Path(__file__).parent / "golden" / f"format-{FORMAT}"
START, MORE = 6, 10
SMALL = {"encoder": {"depth": 1, "width": 16, "heads": 2}, "decoder": {"width": 16, "heads": 2}}


def golden_config(**training: Any) -> RunConfig:
    return tiny(
        "diffusion",
        model=SMALL,
        training={"steps": START + MORE, "checkpoint_every": START, "power_ema": [0.1], **training},
    )


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch)
        train(golden_config(keep=3), run)
        name = f"step-{START:08d}"
        shutil.copytree(run / "checkpoints" / name, FOLDER / "checkpoints" / name)
        shutil.copytree(run / "export", FOLDER / "export")
        expected = {"torch": torch.__version__, "machine": platform.machine(), "losses": losses(run)[START:]}
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
