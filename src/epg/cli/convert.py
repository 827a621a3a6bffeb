"""`epg convert`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import tyro

from epg.cli.named import Out, Weights
from epg.cli.numbers import Decay
from epg.cli.paths import Place


@dataclass(frozen=True)
class Convert:
    """Turn weights into other formats, diffusers' first, and publish.

    Runs into diffusers pipelines; the authors' weights, read and written; programs (torch.export, ONNX); onto the Hub.
    """

    RARE: ClassVar[frozenset[str]] = frozenset({"dataset", "license", "normalization", "private", "recipe", "stage"})

    source: tyro.conf.Positional[Weights]
    """Run folder, checkpoint, export or pipeline folder; .pth file of the authors' release; or on the Hub user/repo,
    user/repo:FILE; or an asset."""
    out: Out
    """Folder, or file for asset (.zip), release (.pth), program (.pt2) and onnx (.onnx)."""
    to: Literal["weights", "pipeline", "asset", "release", "program", "onnx"] | None = None
    """weights: our format, for `epg sample` and `epg finetune --encoder`; pipeline: a folder for diffusers that needs
    nothing else; asset: weights as one file, to publish anywhere; release: the authors' names; program: torch.export of
    a one-step generator; onnx: the same for ONNX. If not given, weights from the release and for encoders, a pipeline
    otherwise."""
    recipe: Place | None = None
    """Recipe (name or .yaml) whose architecture a file of the release must have; recognised if not given."""
    stage: Literal["pretraining", "diffusion", "consistency"] | None = None
    """What a file of the release was trained as; its generators are diffusion models if not given."""
    normalization: Literal["imagenet", "symmetric"] | None = None
    """Of pixels, for a file of the release, which does not record it; if not given, symmetric ([-1, 1]) for one-step
    models, whose released configuration sets no std, and the recipe's otherwise."""
    ema: Decay | None = None
    """Which EMA decay to take, 0 for the weights as trained; the first if not given."""
    license: str | None = None
    """Licence for the model card, as the Hub names it: apache-2.0, cc-by-nc-4.0..."""
    dataset: str | None = None
    """The training data's name on the Hub, for the model card."""
    samples: bool = True
    """Draw the grid of samples of the model card."""
    push: str | None = None
    """Upload the folder to this repository of the Hub, user/repo."""
    private: bool = False
    """Make the repository private if it is new."""
    device: str = "auto"

    def __call__(self) -> None:
        from epg.distributed import pick_device
        from epg.publish.convert import convert
        from epg.publish.folders import Card

        convert(
            self.source,
            self.out,
            to=self.to,
            recipe=self.recipe,
            stage=self.stage,
            normalization=self.normalization,
            ema=self.ema,
            card=Card(self.license, self.dataset, self.samples, pick_device(self.device)),
            push=self.push,
            private=self.private,
        )
