"""Trackers of libraries that are chosen by name: TensorBoard, W&B and Trackio."""

import importlib
import importlib.util
import os
import uuid
import warnings
from pathlib import Path
from typing import Any, Protocol

from epg.config.settings import RunConfig
from epg.errors import UserError
from epg.extras import install

Numbers = dict[str, float]


class Tracker(Protocol):
    """Receives numbers (and sample grids) as training goes on."""

    def log(self, step: int, numbers: Numbers) -> None: ...

    def picture(self, step: int, file: Path) -> None: ...

    def close(self) -> None: ...


class TensorBoardTracker:
    """Event files in `tensorboard/`."""

    def __init__(self, folder: Path, resumed_at: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        # purge_step hides what a killed run had logged beyond its checkpoint.
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=resumed_at + 1)

    def log(self, step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, file: Path) -> None:
        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(file).convert("RGB"))
        self.writer.add_image("samples", pixels, step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class ServiceTracker:
    """A run on Weights & Biases (WANDB_MODE=offline keeps it in `wandb/` of the run folder), or in Trackio's local
    database (`trackio show`; TRACKIO_SPACE_ID or TRACKIO_SERVER_URL send it elsewhere). Resuming continues it."""

    def __init__(self, name: str, folder: Path, config: RunConfig) -> None:
        self.name = name
        self.library = importlib.import_module("wandb") if name == "wandb" else importlib.import_module("trackio")
        title, own = f"{config.recipe} {config.stage}", tracker_id(folder)
        further: dict[str, dict[str, Any]] = {
            "wandb": {"name": title, "id": own, "dir": folder},
            "trackio": {"name": f"{title} {own}", "embed": False, "auto_log_gpu": False, "auto_log_cpu": False},
        }
        project, settings = os.environ.get(f"{name.upper()}_PROJECT", "epg"), config.model_dump(mode="json")
        self.run = self.library.init(project=project, config=settings, resume="allow", **further[name])
        if name == "wandb":  # with a step of our own, a resumed run may log steps again that the killed one had logged
            self.run.define_metric("*", step_metric="step")

    def log(self, step: int, numbers: Numbers) -> None:
        self._send(step, dict(numbers))

    def picture(self, step: int, file: Path) -> None:
        self._send(step, {"samples": self.library.Image(str(file))})

    def _send(self, step: int, content: dict[str, Any]) -> None:
        self.run.log({"step": step, **content}) if self.name == "wandb" else self.run.log(content, step=step)

    def close(self) -> None:
        (self.run if self.name == "wandb" else self.library).finish()


def tracker_id(folder: Path) -> str:
    """What a tracking service knows this run by: drawn once, kept in the run folder."""
    file = folder / "tracker-id"
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text()


def require_trackers(config: RunConfig) -> None:
    """Raises UserError if a chosen tracker's library is not installed."""
    for name in config.training.trackers:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # without origin it is only a folder of that name, as W&B leaves
            raise UserError(f"--training.trackers {name}: not installed. {install(name)}, or leave it out.")


CURES = {"wandb": "Log in with `wandb login`, set WANDB_MODE=offline, or leave it out", "trackio": "Leave it out"}


def opened(name: str, config: RunConfig, folder: Path, resumed_at: int) -> list[Tracker]:
    """A chosen tracker; none, with a warning, where it does not start for a run that is continued.

    Raises UserError where it does not start for a new one.
    """
    try:
        if name == "tensorboard":
            return [TensorBoardTracker(folder, resumed_at)]
        return [ServiceTracker(name, folder, config)]
    except Exception as error:  # of somebody's library, a service or a disk
        text = f"--training.trackers {name}: could not start ({said(error)})"
        if resumed_at == 0:
            raise UserError(f"{text}. {CURES.get(name, 'Leave it out')}.") from error
        warnings.warn(f"{text}; training goes on without it", stacklevel=2)
        return []


def said(error: Exception) -> str:
    """An error of somebody's library in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
