"""What each page takes for granted before its first command: images, runs and archives by the names it uses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from epg.cli import main
from epg.config.settings import RunConfig
from tests.evaluation.helpers import random_images, random_inception
from tests.generators import save_run
from tests.helpers import tiny_config
from tests.walk.files import class_folders, split_folders
from tests.walk.shrunk import NETWORK

Names = dict[str, Any]
"""What Python blocks of the page may use."""


def epg(command: str) -> None:
    assert main(command.split()) == 0, command


def trained(folder: str, stage: str, more: str = "") -> None:
    """A run of four steps on digits."""
    start = "pretrain digits" if stage == "pretraining" else f"finetune digits --stage {stage} --from-scratch"
    epg(f"{start} {NETWORK} {more} --out {folder}")


def readme() -> Names:
    class_folders(Path("path/to/images"))
    return {}


def analysis() -> Names:
    """Receipts to compare, runs of the digits, and samples of photographs."""
    trained("runs/quickstart-digits/pretraining", "pretraining")
    trained("runs/quickstart-digits/diffusion", "diffusion")
    trained("runs/quickstart-digits/diffusion-scratch", "diffusion")
    trained("RUN", "diffusion", "--training.ema 0.999 0.9999 --training.power-ema 0.05 0.1")
    for run in ("runs/a", "runs/b", "other"):
        trained(run, "diffusion")
        epg(f"evaluate {run} --count 9 --steps 2")
    random_inception(Path("inception.pth"))
    split_folders(Path("DATA"))
    class_folders(Path("OTHER"), each=2, first=80)
    archive("samples.npz")
    return {}


def data() -> Names:
    class_folders(Path("photos"), each=2, side=270)
    return {}


def evaluation() -> Names:
    trained("runs/digits/diffusion", "diffusion")
    class_folders(Path("images"), each=2)
    epg("prepare images my-prepared-set --image-size 16 --workers 0")
    archive("samples.npz", size=16)
    random_inception(Path("inception.pth"))
    features = np.random.default_rng(0).normal(size=(2, 50, 4))
    digits = {"real": random_images(40, channels=1), "samples": random_images(20, channels=1, seed=1)}
    return {"features_a": features[0], "features_b": features[1], **digits}


def pipeline() -> Names:
    """The page's runs, whose classes are the digits' names, and a file like those of the release."""
    trained("runs/digits/diffusion", "diffusion")
    trained("runs/digits/consistency", "consistency")
    released(tiny_config())
    return {}


def python() -> Names:
    trained("runs/digits/pretraining", "pretraining")
    trained("runs/digits/diffusion", "diffusion", "--sampling.steps 4")
    return {}


def reliability() -> Names:
    trained("runs/NAME", "diffusion")
    return {}


def sampling() -> Names:
    """A model of ImageNet's first 208 classes, by the numbers and the name that the page uses."""
    names = [{1: "goldfish", 207: "golden retriever"}.get(i, f"class {i}") for i in range(208)]
    save_run(Path("runs/NAME/diffusion"), tiny_config(data={"channels": 3}, model={"num_classes": 208}), names=names)
    return {}


def training() -> Names:
    Path("mine.yaml").write_text("base: digits\n")
    colour = {"channels": 3, "normalization": "imagenet"}
    released(tiny_config(data=colour, noise={"shift": 0.125}, sampling={"steps": 2}))
    class_folders(Path("path/to/images"), each=3)
    class_folders(Path("more/images"), each=2, names=[str(i) for i in range(10)])
    return {}


def zoo() -> Names:
    trained("RUN", "diffusion")
    return {}


def released(config: RunConfig) -> None:
    """A file like those of the release, and the recipe that it fits."""
    save_run(Path("tiny"), config)
    epg("convert tiny --to release --out nnet_ema.pth")
    Path("tiny.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))


def archive(file: str, size: int = 36) -> None:
    np.savez(file, arr_0=random_images(9, size).permute(0, 2, 3, 1).numpy(), arr_1=np.arange(9) % 3)


WORLDS: dict[str, Callable[[], Names]] = {
    "README.md": readme,
    "analysis.md": analysis,
    "data.md": data,
    "evaluation.md": evaluation,
    "pipeline.md": pipeline,
    "python.md": python,
    "reliability.md": reliability,
    "sampling.md": sampling,
    "training.md": training,
    "tutorial.md": readme,
    "zoo.md": zoo,
}
