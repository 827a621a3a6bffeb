"""The work of `epg sample`: a model, the images that are missing, and what is made from them."""

import importlib.metadata
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epg.cost.network import generator_cost
from epg.distributed import pick_device, rank, world_size
from epg.errors import DivergedError, UserError
from epg.generator import Generator
from epg.messages import say
from epg.networks.layers import transformer_blocks
from epg.progress import Display
from epg.sampling.animation import save_animation, trajectory
from epg.sampling.files import images_in_npz, png, read_pngs, replace_file, write_npz, writing
from epg.sampling.folder import RECORD, SampleFolder
from epg.sampling.gallery import gallery
from epg.sampling.interpolation import interpolated, rows_of
from epg.sampling.pictures import grid
from epg.sampling.request import Opened, columns_for, label_kind

LARGEST_GRID = 256
ANIMATED = 16
MOST_WRITERS = 16  # as each of them holds a batch


class Job:
    """An opened request and the folder that its images go into."""

    def __init__(self, opened: Opened, out: Path) -> None:
        self.request, self.folder = opened.request, SampleFolder(out)
        self.sampling, self.classes, self.labels = opened.sampling, opened.classes, opened.labels
        self.model, self.guide, self.scaled = opened.model, opened.guide, opened.scaled
        trained_in = [] if opened.source is None else list(opened.source.trained_in())
        self.record = self.describe(opened.hashes) | ({"trained_in": trained_in} if trained_in else {})
        opened.place()
        for model in filter(None, (self.model, self.guide)):
            self.compile(model.denoiser.network)
        self.shape = (self.model.image_size, self.model.image_size, self.model.normalizer.channels)

    def compile(self, network: nn.Module) -> None:
        """As the request says. Two shapes occur: a batch, and under guidance twice that."""
        if self.request.cuda_graphs:
            network.compile(mode="reduce-overhead", dynamic=False)
        elif self.request.compile:
            for block in transformer_blocks(network):
                block.compile(dynamic=False)

    def describe(self, hashes: Mapping[str, str | None]) -> dict[str, Any]:
        """What `samples.json` says; also prints what is about to happen."""
        model, guide = self.model, self.guide
        own, other = model.evaluations(self.sampling, guide)
        macs = own * macs_of(model) + (0 if guide is None else other * macs_of(guide))
        request = self.request
        if rank() == 0:
            say(
                f"{self.sampling.sampler}, {own + other:g} network evaluations and {macs / 1e9:,.4g} GFLOPs an image "
                f"(the paper's counting), {request.count * macs / 1e12:,.4g} TFLOPs in all; labels: "
                + label_kind(model, request.labels, self.classes)
            )
        return {
            "count": request.count,
            **hashes,
            "seed": request.seed,
            "classes": self.classes,
            "class_names": [model.class_names[c] for c in self.classes if model.class_names],
            "labels": None if self.labels is None else request.labels,
            "sampling": self.sampling.model_dump(mode="json"),
            "dtype": request.dtype,
            "nfe": own + other,
            "gflops": macs / 1e9,
            "batch_size": request.batch_size,
            "compile": request.compile or request.cuda_graphs,
            "device": pick_device(request.device).type,
            "threads": torch.get_num_threads(),
            "versions": {name: importlib.metadata.version(name) for name in ("epg", "torch")},
        }

    def draw(self) -> float:
        """This process's share of the images that are not there yet; returns images per second, 0 for none.

        Batches are those of an uninterrupted run whatever is missing, so that every image is computed as it would
        have been there.
        """
        request, missing = self.request, set(self.folder.missing(self.request.count))
        if not missing:
            return 0.0
        shown = Display("sampling", request.count, request.count - len(missing), show=rank() == 0)

        def count(written: int) -> None:  # this process's share of what all of them have
            shown.advance(min(request.count, shown.done + written * world_size()))

        pending, threads = deque[Future[int]](), writers()
        with shown, ThreadPoolExecutor(threads) as pool:
            for start in range(0, request.count, request.batch_size)[rank() :: world_size()]:
                indices = range(start, min(start + request.batch_size, request.count))
                wanted = [i for i in indices if i in missing]
                if not wanted:
                    continue
                pending.append(pool.submit(self.write, *self.draw_batch(indices), start, wanted))
                if len(pending) > threads:  # a GPU is ahead of the files by so many batches at most
                    count(pending.popleft().result())
            for written in pending:
                count(written.result())
        return shown.rate

    def draw_batch(self, indices: range) -> tuple[Tensor, Tensor]:
        """uint8 (N, C, H, W) and whether all values are finite, both still on the device.

        Where it is compiled, a last batch that is smaller is filled up with images that nobody sees: compiling
        them for its size would take longer.
        """
        request, wanted = self.request, len(indices)
        labels = None if self.labels is None else self.labels[indices.start : indices.stop]
        if (request.compile or request.cuda_graphs) and wanted < request.batch_size < request.count:
            indices = range(indices.start, indices.start + request.batch_size)
            labels = None if labels is None else F.pad(labels, (0, len(indices) - wanted))
        try:
            values = self.model.draw(labels, indices, request.seed, self.sampling, self.guide)[:wanted]
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"--batch-size {request.batch_size}: more than the memory of {self.model.device}. Run the same "
                f"command with --batch-size {max(1, request.batch_size // 2)}; finished images stay."
            ) from error
        return self.model.normalizer.decode(values), values.isfinite().all()

    def write(self, pixels: Tensor, finite: Tensor, start: int, wanted: Sequence[int]) -> int:
        """Waits for a batch and writes those of its images that are wanted; returns their number."""
        images = pixels.permute(0, 2, 3, 1).cpu().numpy()
        if not bool(finite):
            raise DivergedError(
                f"images {wanted[0]} to {wanted[-1]}: values that are not finite, with --dtype {self.request.dtype}. "
                "Try bf16 or fp32; if it stays, the weights are broken."
            )
        for i in wanted:
            replace_file(self.folder.image(i), png(images[i - start]))
        return len(wanted)

    def finish(self) -> None:
        """The grid, and what else was asked for, from the image files; what is there already stays."""
        request, path = self.request, self.folder.path
        files = [self.folder.image(i) for i in range(request.count)]
        columns = columns_for(self.classes or self.model.classes.usual, request)
        if not newer(path / "grid.png", path / RECORD):
            shown = np.stack(list(read_pngs(files[:LARGEST_GRID], self.shape)))
            with writing(path / "grid.png") as temporary:
                grid(torch.from_numpy(shown).permute(0, 3, 1, 2), columns).save(temporary, "PNG")
        if request.npz and images_in_npz(path / "samples.npz") != request.count:
            write_npz(path / "samples.npz", files, self.shape, None if self.labels is None else self.labels.numpy())
        if request.animation and not newer(path / f"animation.{request.animation}", path / RECORD):
            indices = range(min(ANIMATED, request.count))
            labels = None if self.labels is None else self.labels[: len(indices)]
            moments = trajectory(self.model, labels, indices, request.seed, self.sampling, self.guide)
            save_animation(moments, path / f"animation.{request.animation}")
        if request.interpolate and not newer(path / f"between-{request.interpolate}.png", path / RECORD):
            self.interpolate(path / f"between-{request.interpolate}.png", request.interpolate)
        picture = path / f"gallery-{'-'.join(f'{scale:g}' for scale in request.scales)}.png"
        if request.scales and not newer(picture, path / RECORD):
            size = {"count": request.count, "seed": request.seed, "batch_size": request.batch_size}
            with writing(picture) as temporary:
                gallery(self.model, self.labels, self.scaled, **size, guide=self.guide).save(temporary, "PNG")

    def interpolate(self, file: Path, between: int) -> None:
        """Rows that lead from one of the first images to the next."""
        row, rows = rows_of(self.request.count, len(self.classes or self.model.classes.usual))
        labels = None if self.labels is None else self.labels[: row * rows]
        size = {"row": row, "rows": rows, "seed": self.request.seed, "batch_size": self.request.batch_size}
        pictures = interpolated(self.model, labels, between, **size, sampling=self.sampling, guide=self.guide)
        with writing(file) as temporary:
            grid(pictures, len(pictures) // rows).save(temporary, "PNG")


def writers() -> int:
    """Threads that fetch, encode and write while the next batch is computed: this process's share of the cores, as a
    core makes about 8,000 PNG files of 32 pixels, or 200 of 256, in a second."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WRITERS, max(2, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def macs_of(model: Generator) -> int:
    """Multiply-adds of one evaluation of one image as the paper counts them."""
    return generator_cost(model.denoiser.network.shape).macs


def newer(file: Path, than: Path) -> bool:
    return file.is_file() and file.stat().st_mtime_ns >= than.stat().st_mtime_ns
