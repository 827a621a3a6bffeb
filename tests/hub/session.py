"""A user's session with the Hub, in a process of its own: what each command answered, as JSON on the last line."""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import torch

from epg import load
from epg.cli import main
from epg.errors import ArtefactError


def command(*arguments: str) -> dict[str, Any]:
    """Exit code and everything printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = main([*arguments])
    return {"code": code, "printed": printed.getvalue()}


def session(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    device = ("--device", "cpu")
    found["push"] = command(
        *("convert", str(folder / "run"), "--out", str(folder / "tiny"), "--license", "mit"),
        *("--dataset", "me/pictures", "--push", "me/tiny", *device),
    )
    found["push encoder"] = command(
        "convert", str(folder / "encoder"), "--out", str(folder / "rcm"), "--push", "me/rcm", *device
    )
    found["sample"] = command("sample", "me/tiny", "--out", str(folder / "out"), "--count", "3", *device)
    torch.save(load("me/tiny").sample(torch.tensor([0, 1, 2])), folder / "images.pt")
    found["finetune"] = command(
        *("finetune", str(folder / "recipe.yaml"), "--encoder", "me/rcm", "--out", str(folder / "tuned")),
        *("--training.steps", "1"),
    )
    found["release"] = command(
        *("convert", "me/release:EPG-tiny", "--recipe", str(folder / "golden.yaml"), "--out", str(folder / "golden")),
        *("--no-samples", *device),
    )
    found["release absent"] = command("convert", "me/release:EPG-huge", "--out", str(folder / "x"), *device)
    found["absent"] = command("sample", "me/absent", "--out", str(folder / "x"), *device)
    found["not ours"] = command("sample", "me/release", "--out", str(folder / "x"), *device)

    from diffusers import DiffusionPipeline

    from epg.pipeline import EPGPipeline

    pipe = DiffusionPipeline.from_pretrained("me/tiny", trust_remote_code=True)
    found["diffusers"] = type(pipe).__module__
    pipe.set_progress_bar_config(disable=True)
    torch.save(pipe([0, 1, 2], generator=0, output_type="pt").images, folder / "piped.pt")
    EPGPipeline.from_pretrained("me/tiny").push_to_hub("me/again", token="hf_test")

    import huggingface_hub.constants as constants

    constants.ENDPOINT = "http://127.0.0.1:9"
    found["no network"] = command("sample", "me/elsewhere", "--out", str(folder / "x"), *device)
    found["push without network"] = command(
        *("convert", str(folder / "run"), "--out", str(folder / "tiny2"), "--push", "me/tiny", "--no-samples", *device)
    )
    found["cached"] = command("sample", "me/tiny", "--out", str(folder / "cached"), "--count", "1", *device)
    constants.HF_HUB_OFFLINE = True
    found["offline"] = command("sample", "me/elsewhere", "--out", str(folder / "x"), *device)
    try:
        load("me/elsewhere")
    except ArtefactError as error:
        found["load offline"] = str(error)
    return found


if __name__ == "__main__":
    print(json.dumps(session(Path(sys.argv[1]))))
