"""What looks at a run while it trains: a preview, a judge for the log, evaluations; all of averaged weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from epg.sharding import is_sharded
from epg.training.learner import Learner

Preview = Callable[[Path], None]
"""Draws a sample grid with the network's present weights into a PNG file."""

Judge = Callable[[], dict[str, float]]
"""Numbers of the network's present weights that are cheap enough for the log."""


class Evaluation(Protocol):
    """Judges the network's present weights; every process calls all of it together."""

    def due(self, step: int) -> bool: ...

    def missing(self, step: int) -> bool:
        """Whether the evaluation of a step was interrupted."""
        ...

    def __call__(self, step: int, between: Callable[[], None], saved: Callable[[], bool]) -> dict[str, float]:
        """Numbers for the trackers. `between` is called now and then; `saved`, by all, waits for the checkpoint."""
        ...


@contextmanager
def computing_in(
    autocast: Callable[[], AbstractContextManager[object]], modules: Sequence[nn.Module]
) -> Iterator[None]:
    """Inside the `with` the forward passes of the modules, and nothing around them, are in this precision."""

    def within(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*inputs: Any, **options: Any) -> Any:
            with autocast():
                return forward(*inputs, **options)

        return run

    own = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = within(module.forward)
    try:
        yield
    finally:
        for module, forward in zip(modules, own, strict=True):
            del module.forward  # that of its class is there again
            if forward is not None:
                module.forward = forward


@contextmanager
def averaged(learner: Learner, alive: Callable[[], None]) -> Iterator[None]:
    """Inside the `with` the network has its averaged weights, to be judged; whatever it computes calls `alive`, as this
    process does not hang, however long it takes in all.

    It is not compiled: a few batches of other sizes, without gradients, would each compile the blocks anew. It computes
    in float32, unless its weights are sharded, which are gathered in the precision of training; what judges its
    images computes as ever."""
    network = learner.objective.network
    parts = (network, *network.children())
    hooks = [module.register_forward_hook(lambda *_: alive()) for module in parts]
    learner.objective.eval()
    try:
        sharded = any(is_sharded(parameter) for parameter in learner.parameters)
        precision = computing_in(learner.autocast, parts) if sharded else nullcontext()
        with learner.ema.applied(), torch.compiler.set_stance("force_eager"), precision:
            yield
    finally:
        learner.objective.train()
        for hook in hooks:
            hook.remove()
        alive()
