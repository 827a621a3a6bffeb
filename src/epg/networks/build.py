"""Networks from a configuration."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from epg.config.sections import DataConfig, ModelConfig
from epg.cost.shape import shape_of
from epg.networks.decoder import EPG
from epg.networks.encoder import RCM, Encoder, Projector


def build_encoder(model: ModelConfig, data: DataConfig) -> Encoder:
    return Encoder(shape_of(model, data))


def build_rcm(model: ModelConfig, data: DataConfig) -> RCM:
    """Encoder and projector of stage 1."""
    return RCM(build_encoder(model, data), Projector(model.encoder.width, model.projector_hidden, model.projector_out))


def build_epg(model: ModelConfig, data: DataConfig, gaussians: int = 0, internal: bool = False) -> EPG:
    """Encoder and decoder of stage 2; `model.num_classes` must be a number."""
    assert model.num_classes is not None, "the number of classes is resolved from the data first"
    return EPG(shape_of(model, data, gaussians, internal))


@contextlib.contextmanager
def without_numbers() -> Iterator[None]:
    """What is built inside the `with` is on the meta device: shapes to count, or to be filled. Nothing is initialised,
    as the first random number there would make torch import its compiler, which takes two seconds."""
    with torch.device("meta"), _Uninitialised():
        yield


class _Uninitialised(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else dict(kwargs or {})["tensor"]
        return func(*args, **kwargs or {})
