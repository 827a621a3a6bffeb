"""The paper's stage 2 written plainly, and how much faster EPG's step of the same mathematics is.

    OMP_NUM_THREADS=1 python benchmarks/plain.py digits
    OMP_NUM_THREADS=1 python benchmarks/plain.py small --objective.parameterization x --optimizer.kind adamw \\
        --model.stem 0

Plain is what one writes down first: eager, every operation by itself, a convolution for the patches, attention by its
formula, loops over parameters in clipping, AdamW and the average. Its parameters have EPG's names, so that it starts
with the same weights, and its loss is compared before anything is timed. Steps of both alternate in one process, which
keeps its freed memory for both; what is shown is its CPU time, which other processes disturb least.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from epg.bench.images import RandomImages
from epg.cli import configure
from epg.config.settings import RunConfig
from epg.data.loading.base import CachedDataset
from epg.data.loading.loader import BatchLoader
from epg.objectives.diffusion import Diffusion
from epg.runs import build_objective
from epg.training.loop import Trainer
from epg.training.resolving import resolve


@dataclass(frozen=True)
class Options:
    """CPU time of a diffusion step, EPG's beside a plain one."""

    recipe: tyro.conf.Positional[str]
    pairs: int = 8
    """Pairs of blocks of steps, in turn."""
    block_steps: int = 4


def embedding(c: Tensor, width: int) -> Tensor:
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angles = c[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(n, t, d))


class MLP(nn.Module):
    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, int(width * ratio)), nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Of the encoder, or with `outer`, the encoder's width, of the decoder."""

    def __init__(self, width: int, heads: int, ratio: float, outer: int = 0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads), MLP(width, ratio)
        if outer:
            self.skip_linear, self.skip_norm = nn.Linear(width + outer, width), nn.LayerNorm(width)
            self.modulation = nn.Linear(outer, 6 * width)

    def forward(self, x: Tensor, skip: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        if skip is None or condition is None:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.skip_norm(self.skip_linear(torch.cat([x, skip], dim=-1)))
        s1, c1, g1, s2, c2, g2 = self.modulation(F.silu(condition)).unsqueeze(1).chunk(6, dim=-1)
        x = x + g1 * self.attention(self.norm1(x) * (1 + c1) + s1)
        return x + g2 * self.mlp(self.norm2(x) * (1 + c2) + s2)


class Plain(nn.Module):
    """Table 7's network, without stem."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        model, data = config.model, config.data
        wide, narrow, ratio, p = model.encoder.width, model.decoder.width, model.mlp_ratio, model.patch_size
        self.patch, self.grid, self.channels = p, data.image_size // p, data.channels
        encoder, decoder = nn.Module(), nn.Module()
        encoder.patch_embedding = nn.Conv2d(data.channels, wide, p, stride=p)
        encoder.cls_token = nn.Parameter(torch.zeros(1, 1, wide))
        encoder.position_embedding = nn.Parameter(torch.zeros(1, self.grid**2 + 2, wide))
        encoder.blocks = nn.ModuleList(Block(wide, model.encoder.heads, ratio) for _ in range(model.encoder.depth))
        encoder.norm = nn.LayerNorm(wide)
        decoder.from_encoder = nn.Identity() if wide == narrow else nn.Linear(wide, narrow)
        decoder.blocks = nn.ModuleList(
            Block(narrow, model.decoder.heads, ratio, wide) for _ in range(model.encoder.depth)
        )
        decoder.norm, decoder.out = nn.LayerNorm(narrow), nn.Linear(narrow, p**2 * data.channels)
        self.encoder, self.decoder = encoder, decoder
        self.class_embedding = nn.Embedding((model.num_classes or 0) + 1, wide)

    def forward(self, x: Tensor, c: Tensor, labels: Tensor) -> Tensor:
        n, g, p, encoder, decoder = len(x), self.grid, self.patch, self.encoder, self.decoder
        classes = self.class_embedding(labels)
        patches = encoder.patch_embedding(x).flatten(2).transpose(1, 2)
        time_token = embedding(c, patches.shape[-1])
        cls = encoder.cls_token.expand(n, -1, -1) + classes[:, None]
        x = torch.cat([cls, time_token[:, None], patches], dim=1) + encoder.position_embedding
        skips = []
        for block in encoder.blocks:
            x = block(x)
            skips.append(x)
        x = decoder.from_encoder(encoder.norm(x))
        for block in decoder.blocks:
            x = block(x, skips.pop(), time_token + classes)
        x = decoder.out(decoder.norm(x)[:, 2:])
        return x.view(n, g, g, p, p, self.channels).permute(0, 5, 1, 3, 2, 4).reshape(n, self.channels, g * p, g * p)


class PlainRun:
    """Weights, moments and average of a plain run that begins where EPG's does."""

    def __init__(self, objective: Diffusion, config: RunConfig) -> None:
        self.objective, self.config, self.step = objective, config, 0
        self.network = Plain(config)
        self.network.load_state_dict(objective.network.state_dict())
        self.parameters = list(self.network.parameters())
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.parameters]
        self.average = [p.detach().clone() for p in self.parameters]

    def loss(self, drawn: Mapping[str, Tensor]) -> Tensor:
        """`lambda (D(x_t, t) - x)^2` at the levels of the grid nearest to those drawn."""
        images, objective = drawn["images"], self.objective
        index = (objective.levels(drawn["unit"])[:, None] - objective.grid).abs().argmin(dim=1)
        t = objective.shift * objective.grid[index]
        noisy = images + t.view(-1, 1, 1, 1) * drawn["noise"]
        scale = 1 / torch.sqrt(t**2 + self.config.noise.sigma_data**2)
        denoised = self.network(scale.view(-1, 1, 1, 1) * noisy, 250 * t.log(), drawn["labels"])
        return (objective.weights[index] * (denoised - images).square().mean((1, 2, 3))).mean()

    def take(self, drawn: Mapping[str, Tensor]) -> None:
        """A step of AdamW (weight decay everywhere), after clipping, and of the average; every parameter by itself."""
        settings = self.config.optimizer
        self.network.zero_grad()
        self.loss(drawn).backward()
        self.step += 1
        (a, b), clip = settings.betas, settings.clip or math.inf
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.sqrt(sum((g**2).sum() for g in gradients))
        factor = min(1.0, clip / float(norm))
        with torch.no_grad():
            for p, g, (m, v), e in zip(self.parameters, gradients, self.moments, self.average, strict=True):
                g = g * factor
                m.copy_(a * m + (1 - a) * g)
                v.copy_(b * v + (1 - b) * g**2)
                move = (m / (1 - a**self.step)) / (torch.sqrt(v / (1 - b**self.step)) + 1e-8)
                p.copy_(p - settings.lr * (move + settings.weight_decay * p))
                e.copy_(0.999 * e + 0.001 * p)


def main(arguments: Sequence[str] | None = None) -> None:
    options, overrides = tyro.cli(Options, args=arguments, return_unknown_args=True)
    config = configure(options.recipe, "diffusion", ["--data.workers", "0", *overrides])
    dataset = CachedDataset(RandomImages(config, 2 * config.training.batch_size))
    config = resolve(config, dataset)
    assert config.model.num_classes, "plain has classes"
    assert not config.model.stem, "plain has no stem: --model.stem 0"
    assert config.objective.predicts == "x", "plain predicts images: --objective.parameterization x"
    assert config.optimizer.kind == "adamw", "plain has AdamW: --optimizer.kind adamw"
    assert config.training.precision == "fp32", "plain computes in float32: --training.precision fp32"
    with tempfile.TemporaryDirectory() as folder:
        compare(Trainer(build_objective(config), dataset, config, Path(folder)), options)


def compare(trainer: Trainer, options: Options) -> None:
    """Prints what a step takes, plain and of the trainer, in turn."""
    objective, config = trainer.learner.objective, trainer.config
    assert isinstance(objective, Diffusion)
    batches = iter(BatchLoader(trainer.dataset, batch_size=config.training.batch_size, seed=0))
    plain, (batch,) = PlainRun(objective, config), next(batches)
    drawn = objective.draw(batch, 0)
    losses = float(plain.loss(drawn).detach()), float(objective(drawn)["loss"].detach())
    assert math.isclose(*losses, rel_tol=1e-4), f"not the same mathematics: {losses}"

    def seconds(ours: bool) -> float:
        begin = time.process_time()
        for _ in range(options.block_steps):
            if ours:
                trainer.train_step(next(batches))
            else:
                plain.take(objective.draw(next(batches)[0], plain.step))
        return (time.process_time() - begin) / options.block_steps

    seconds(True), seconds(False)
    pairs = [(seconds(False), seconds(True)) for _ in range(options.pairs)]
    before, after = (1e3 * statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{options.recipe}: plain {before:.1f} ms, EPG {after:.1f} ms of CPU a step: {ratio:.2f} times")


if __name__ == "__main__":
    main()
