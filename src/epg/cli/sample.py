"""`epg sample`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from epg.cli.drawing import Drawing
from epg.cli.named import OutFolder, Weights
from epg.cli.numbers import Between, Images
from epg.command_line import written


@dataclass(frozen=True)
class Sample(Drawing):
    """Draw images with a trained generator: PNG files and a grid.

    The same command continues an interrupted run; `torchrun --nproc-per-node N -m epg.cli sample ...` shares the work.
    """

    RARE: ClassVar[frozenset[str]] = frozenset(
        {"animation", "batch_size", "compile", "cuda_graphs", "interpolate", "scales"}
    )

    CONTINUES: ClassVar[bool] = True

    checkpoint: tyro.conf.Positional[Weights]
    """Run folder, checkpoint, export, pipeline folder, user/repo on the Hub, or an asset (docs/zoo.md)."""
    out: OutFolder = Path("samples")
    """Folder for the images."""
    count: Images = 64
    """Number of images; a larger one continues a finished folder."""
    compile: bool = False
    """torch.compile every transformer block: faster on a GPU after a minute of compiling."""
    cuda_graphs: bool = False
    """torch.compile the whole network and replay it as CUDA graphs: for a GPU that waits for its next kernel, as with
    small networks or few images at once. Not run on one yet."""
    npz: bool = False
    """Also write samples.npz (arr_0 uint8 NHWC, arr_1 labels), which ADM's evaluator reads."""
    animation: Literal["gif", "png", "webp"] | None = None
    """Also show the way from noise to the first images: x_t and beside it D(x_t, t)."""

    interpolate: Annotated[int | None, Between(1, 64)] = None
    """Also show so many pictures between each of the first images and the next, of another class: labels mixed, noise
    turned from one to the other (between-N.png)."""

    scales: tuple[float, ...] = ()
    """Also show the first images at these scales of guidance, from the same noise: a row for each class, a block for
    each scale (gallery-1-2.png)."""

    def __call__(self) -> None:
        from epg.distributed import tells
        from epg.sampling import write_samples

        names = ("count", "compile", "cuda_graphs", "npz", "animation", "interpolate", "scales")
        own = {name: getattr(self, name) for name in names}
        write_samples(self.checkpoint, self.out, self.request(**own))
        if tells() and (Path(self.checkpoint) / "config.yaml").is_file():
            print(f"Next: {written('epg', 'report', self.checkpoint)}")
