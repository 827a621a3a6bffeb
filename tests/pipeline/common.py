"""Pipelines around the tiny generators, and what pictures they give."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from epg.pipeline import EPGPipeline
from tests.generators import tiny_generator

LABELS = [0, 1, 2, 0, 1]


def tiny_pipeline(stage: str = "diffusion", **changes: Any) -> EPGPipeline:
    return quiet(EPGPipeline.from_generator(tiny_generator(stage, **changes)))


def quiet(pipe: EPGPipeline) -> EPGPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(images: list[Any]) -> Tensor:
    """uint8 (N, C, H, W) of PIL images."""
    arrays = [np.asarray(image) for image in images]
    return torch.from_numpy(np.stack([a[None] if a.ndim == 2 else a.transpose(2, 0, 1) for a in arrays]))


def python(code: str, home: Path, **environment: str) -> str:
    """Runs code in a fresh process with an empty cache of dynamic modules; returns what it prints."""
    settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **settings, **environment}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
