"""How long the parts of a study last: training for another number of steps, and checkpoints to compare."""

from collections.abc import Sequence
from pathlib import Path

from epg.checkpoint.checkpoint import listing, step_of
from epg.checkpoint.saving import is_ours
from epg.config.settings import RunConfig
from epg.storage import files


def at_length(config: RunConfig, steps: int) -> RunConfig:
    """The configuration trained for another number of steps: everything that counts steps is scaled along."""
    factor = steps / config.training.steps

    def scaled(number: int) -> int:
        return max(1, round(number * factor))

    optimizer = config.optimizer.model_copy(
        update={
            "warmup_steps": scaled(config.optimizer.warmup_steps),
            "lr_steps": [(scaled(step), lr) for step, lr in config.optimizer.lr_steps],
        }
    )
    training = config.training.model_copy(
        update={
            "steps": steps,
            "log_every": max(1, steps // 50),
            # A shorter run needs a shorter memory: the same share of its steps, at least half of the last one.
            "ema": [max(0.5, 1 - (1 - decay) / min(1.0, factor)) for decay in config.training.ema],
            # Of a short run two previews are enough: each takes as long as several steps.
            "preview_every": max(scaled(config.training.preview_every), -(-steps // 2)),
            "checkpoint_every": scaled(config.training.checkpoint_every),
        }
    )
    objective = config.objective.scaled(factor)
    return config.model_copy(update={"optimizer": optimizer, "training": training, "objective": objective})


def with_milestones(config: RunConfig, milestones: int) -> RunConfig:
    """Checkpoints at equal distances, all of them kept: enough for `milestones` halvings of the training."""
    count = 2 ** (milestones - 1)
    every = -(-config.training.steps // count)
    training = config.training.model_copy(update={"checkpoint_every": every, "keep": max(2, count)})
    return config.model_copy(update={"training": training})


def halvings(checkpoints: list[Path], milestones: int) -> list[Path]:
    """The last checkpoint, the one halfway to it, and so on; earliest first. The same again from what is kept."""
    last = step_of(checkpoints[-1])
    wanted = [last / 2**k for k in reversed(range(milestones))]
    return list(dict.fromkeys(min(checkpoints, key=lambda path: abs(step_of(path) - step)) for step in wanted))


def keep_only(checkpoints: Sequence[Path]) -> None:
    """Removes the other checkpoints of ours beside these."""
    for path in listing(checkpoints[0].parent) if checkpoints else []:
        if path not in checkpoints and is_ours(path):
            files.discard(path)
