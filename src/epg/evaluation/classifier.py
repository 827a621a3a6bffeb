"""An in-domain classifier: trained on the labelled set itself, no download. Its features judge generated images where
Inception is meaningless (digits, textures, medical images). Not an FID: figures only compare within one data set."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epg.randomness import doubles, integers, weights_seed

FEATURES = 64


class Classifier(nn.Module):
    """A small convolutional network: uint8 images (N, C, H, W) -> features (N, 64) -> logits (N, classes)."""

    def __init__(self, channels: int, image_size: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        stride = max(1, image_size // 16)  # large images are not worth more time than small ones here
        stem = nn.Conv2d(channels, 32, max(3, 2 * stride - 1), stride=stride, padding=max(1, stride - 1))
        width, size = 32, stem(torch.zeros(1, channels, image_size, image_size)).shape[-1]
        layers += [stem, nn.GroupNorm(8, width), nn.GELU()]
        while size > 4:
            wider = min(2 * width, 128)
            layers += [nn.Conv2d(width, wider, 3, stride=2, padding=1), nn.GroupNorm(8, wider), nn.GELU()]
            layers += [nn.Conv2d(wider, wider, 3, padding=1), nn.GroupNorm(8, wider), nn.GELU()]
            width, size = wider, (size + 1) // 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size * size, FEATURES), nn.GELU())
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """uint8 (N, C, H, W) -> (N, 64)."""
        return self.body(images.float() / 127.5 - 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier and how well it does on images it has not seen."""

    network: Classifier
    held_out_accuracy: float


def train_classifier(
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    num_classes: int,
    *,
    steps: int = 400,
    batch_size: int = 128,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrainedClassifier:
    """Trains on (images uint8 (N, C, H, W), labels (N,)) with small random shifts, measures on the held-out pair."""
    images, labels = train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights_seed(seed, "classifier"))
        network = Classifier(images.shape[1], images.shape[2], num_classes)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.from_numpy(integers(len(images), batch_size, seed, "classifier", step))
        moved = shifted(images[chosen], *doubles(2, seed, "classifier move", step))
        loss = F.cross_entropy(network(moved), labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_progress:
            on_progress(step + 1, steps)
    network.eval()
    images, labels = held_out
    with torch.no_grad():
        predicted = torch.cat([network(part).argmax(1) for part in images.split(512)])
    return TrainedClassifier(network, float((predicted == labels).double().mean()))


def shifted(images: Tensor, x: float, y: float) -> Tensor:
    """The batch moved by up to an eighth of the side either way as x and y go from 0 to 1, edges repeated."""
    reach = max(1, images.shape[-1] // 8)
    dx, dy = (int(part * (2 * reach + 1)) for part in (x, y))
    padded = F.pad(images.float(), (reach,) * 4, mode="replicate")
    return padded[..., dy : dy + images.shape[-2], dx : dx + images.shape[-1]]
