"""What a generator begins with: a pre-trained encoder, a whole generator, or neither, and which is said."""

from pathlib import Path

from epg.config.objectives import KINDS, Stage
from epg.errors import UserError


def refuse_beginning(
    recipe: str,
    stage: Stage,
    encoder: str | Path | None,
    base: str | Path | None,
    from_scratch: bool,
    resume: str | Path | None,
) -> None:
    """Raises UserError where it is not said, or said twice, what a generator begins with."""
    if KINDS[stage].continues and base is None and resume is None:
        raise UserError(
            f"--from: --stage {stage} goes on from a trained generator. Pass a run folder of `epg finetune` "
            f"(runs/{Path(recipe).stem}/diffusion by default), an export or user/repo."
        )
    if encoder is None and base is None and not from_scratch and resume is None:
        raise UserError(
            "--encoder: which pre-trained encoder? Pass the run folder of `epg pretrain` (runs/"
            f"{Path(recipe).stem}/pretraining by default), or --from-scratch."
        )
    if encoder is not None and from_scratch:
        raise UserError("--encoder and --from-scratch: choose one")
    if base is not None and from_scratch:
        raise UserError("--from and --from-scratch: choose one")
