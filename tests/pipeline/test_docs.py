"""The Python of docs/pipeline.md runs, on what its commands would have made."""

import re
from pathlib import Path

import torch

from epg.checkpoint.loading import load
from tests.generators import save_run
from tests.helpers import tiny_config
from tests.pipeline.common import pixels

PAGE = (Path(__file__).parents[2] / "docs" / "pipeline.md").read_text()


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_run(Path("runs/digits/diffusion"), tiny_config(model={"num_classes": 10}))
    model = load("runs/digits/diffusion")
    from dataclasses import replace

    from epg.pipeline import EPGPipeline

    EPGPipeline.from_generator(replace(model, class_names=tuple("0123456789"))).save_pretrained("digits-pipe")
    first, second, with_diffusers = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = run(first)
    assert not names["values"].requires_grad  # 63 evaluations would be kept for a backward pass that never comes
    assert torch.equal(names["model"].normalizer.decode(names["values"]), names["images"])
    names = run(second)
    assert names["images"].shape == (2, 1, 8, 8)
    assert "trust_remote_code=True" in with_diffusers  # test_folder.py runs that one elsewhere
    call = with_diffusers.split("\n")[-2].removeprefix("image = ")
    image = eval(call, {"pipe": names["pipe"]})
    assert torch.equal(pixels([image]), load("digits-pipe").sample(torch.tensor([3])))


def run(code: str) -> dict:
    names: dict = {}
    exec(code, names)
    return names
