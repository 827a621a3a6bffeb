"""What looks at a run while it trains: a preview, a judge for the log, evaluations; all of averaged weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

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
def averaged(learner: Learner, alive: Callable[[], None]) -> Iterator[None]:
    """Inside the `with` the network has its averaged weights, to be judged; whatever it computes calls `alive`, as this
    process does not hang, however long it takes in all.

    It is not compiled: a few batches of other sizes, without gradients, would each compile the blocks anew. It computes
    in float32, unless its weights are sharded, which are gathered in the precision of training."""
    network = learner.objective.network
    hooks = [module.register_forward_hook(lambda *_: alive()) for module in (network, *network.children())]
    learner.objective.eval()
    try:
        sharded = any(is_sharded(parameter) for parameter in learner.parameters)
        precision = learner.autocast() if sharded else nullcontext()
        with learner.ema.applied(), torch.compiler.set_stance("force_eager"), precision:
            yield
    finally:
        learner.objective.train()
        for hook in hooks:
            hook.remove()
        alive()
