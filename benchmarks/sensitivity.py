"""Which metric notices what: real images, spoiled in known ways, judged as if they were samples.

    python benchmarks/sensitivity.py cifar10/ --image-size 32      # anything with labels, a train and a test split

Features need no download: a classifier trained on the set, and the same network with random weights. The rows are not
FIDs; they show which number moves with which fault, and how far above the floor (real held-out images) it goes.
"""

import argparse
import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from epg.analysis.memorisation import memorisation
from epg.data.loading.base import CachedDataset
from epg.evaluation.evaluate import evaluate
from epg.evaluation.extractors.indomain import classifier, images_and_labels, untrained
from epg.evaluation.reference import make_reference
from epg.evaluation.sources import DatasetSource, TensorSource
from epg.evaluation.subjects import open_whole
from epg.randomness import normal, permutation

WORDS = ("fd", "pr", "dc", "kid")


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of uint8 images (N, C, H, W)."""
    reach = int(3 * sigma + 1)
    x = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel /= kernel.sum()
    channels = images.shape[1]
    result = F.pad(images.float(), (reach,) * 4, mode="replicate")
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        weight = kernel.view(shape).repeat(channels, 1, 1, 1)
        result = F.conv2d(result, weight, groups=channels)
    return result.round().clamp(0, 255).to(torch.uint8)


def noisy(images: Tensor, std: float) -> Tensor:
    noise = std * normal(range(len(images)), images.shape[1:], 0, "noise", device="cpu")
    return (images.float() + noise).round().clamp(0, 255).to(torch.uint8)


def faults(train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Samples and labels by the name of what is wrong with them."""
    images, labels = test
    count = len(images)
    one_missing = labels != 3
    few = np.tile(permutation(count, 0, "few")[: max(10, count // 20)], 20)[:count]
    copied = permutation(len(train[0]), 0, "copied")[:count]
    wrong = labels[permutation(count, 0, "labels")]
    return {
        "held-out images (floor)": test,
        "blurred, sigma 1 pixel": (blurred(images, 1.0), labels),
        "noise, std 10 of 255": (noisy(images, 10.0), labels),
        "class 3 missing": (images[one_missing], labels[one_missing]),
        "each twentieth image 20 times": (images[few], labels[few]),
        "training images (memorised)": (train[0][copied], train[1][copied]),
        "labels shuffled": (images, wrong),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--channels", type=int)
    parser.add_argument("--kept", type=int, default=10_000)
    parser.add_argument("--json")
    options = parser.parse_args(arguments)
    splits = [
        CachedDataset(open_whole(options.source, image_size=options.image_size, channels=options.channels, split=split))
        for split in ("train", "test")
    ]
    train, held_out = (images_and_labels(split) for split in splits)
    order = permutation(len(held_out[0]), 0, "halves")
    test, rest = ((held_out[0][half], held_out[1][half]) for half in np.array_split(order, 2))
    judge = classifier(*splits)
    extractors = [judge, untrained(splits[0].channels, splits[0].image_size)]
    reference = make_reference(DatasetSource(splits[0], "train"), extractors, kept=options.kept)
    rows = {}
    for name, (images, labels) in faults(train, test).items():
        receipt = evaluate(TensorSource(images, labels), reference, extractors, [*WORDS, "accuracy"])
        rows[name] = {key: (number.value, number.error) for key, number in receipt.metrics.items()}
        pixels = [x.flatten(1).numpy().astype(np.float32) for x in (images, train[0], rest[0])]
        copies = memorisation(pixels[0][:500], *pixels[1:], "pixels")
        rows[name]["memorisation"] = (copies.score, copies.error)
        print(name, {key: round(value, 4) for key, (value, _) in rows[name].items()}, file=sys.stderr, flush=True)
    accuracy = f"{judge.held_out_accuracy:.1%}"
    print(
        f"{len(train[0])} training images, {len(test[0])} samples; the classifier is right on {accuracy} of unseen ones"
    )
    print(table(rows))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(rows, file, indent=1)


def table(rows: dict[str, dict[str, tuple[float, float | None]]]) -> str:
    """Markdown: one line for each fault."""
    keys = list(next(iter(rows.values())))
    lines = ["| samples | " + " | ".join(keys) + " |", "|---|" + "---:|" * len(keys)]
    for name, numbers in rows.items():
        lines.append(f"| {name} | " + " | ".join(f"{numbers[key][0]:.3g}" for key in keys) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
