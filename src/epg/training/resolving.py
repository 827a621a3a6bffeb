"""What a recipe leaves open, filled in from the data, the device, and the run that is continued."""

from typing import Literal

import torch

from epg.config.settings import RunConfig
from epg.config.validation import check
from epg.data.loading.base import ImageDataset
from epg.distributed import pick_device
from epg.errors import UserError


def resolve(config: RunConfig, dataset: ImageDataset, before: RunConfig | None = None) -> RunConfig:
    """The configuration with the number of classes filled in from the data, and an `auto` precision from the device or
    from how the run that is continued began; checked as a whole."""
    classes = config.model.num_classes
    if classes is None:
        classes = dataset.num_classes
        if classes == 0:  # the recipe could not know that there would be nothing to guide towards
            config = config.model_copy(update={"sampling": config.sampling.model_copy(update={"guidance": 1.0})})
    elif classes and dataset.num_classes == 0:
        raise UserError(
            f"--model.num-classes {classes}: {config.data.source} has no labels. Use class folders or a label column, "
            "or --model.num-classes 0 for an unconditional model."
        )
    elif classes and int(dataset.labels.max()) >= classes:
        raise UserError(
            f"--model.num-classes {classes}: {config.data.source} has a label {int(dataset.labels.max())}. "
            f"Pass --model.num-classes {dataset.num_classes}."
        )
    model, training = config.model.model_copy(update={"num_classes": classes}), config.training
    if training.precision == "auto":
        found = before.training.precision if before else best_precision(pick_device(training.device))
        training = training.model_copy(update={"precision": found})
    return check(config.model_copy(update={"model": model, "training": training}))


def best_precision(device: torch.device) -> Literal["bf16", "fp32"]:
    """bf16 where torch says that the device multiplies it in hardware: of CPUs those with avx512_bf16."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"
