"""Every operation of a training step, or of one evaluation of a network, with its FLOPs and bytes.

From a run on tensors without numbers.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from epg.config.settings import RunConfig
from epg.data.loading.loader import Batch
from epg.networks.build import without_numbers
from epg.objectives.base import GeneratorObjective, Objective
from epg.runs import build_objective
from epg.training.ema import EMA
from epg.training.optim import Optimizer, make_optimizer

Phase = Literal["drawing", "loss", "update"]
DRAWING, UPDATE = "views and noise", "optimizer and averages"
HEAVY = ("products", "attention", "convolutions")
LIGHT = ("norms", "casts and copies", "elementwise and sums")


@dataclass(frozen=True)
class Operation:
    """A kernel: the bytes of each storage that it reads and writes."""

    name: str
    phase: Phase
    flops: float
    read: dict[int, int]
    written: dict[int, int]

    @property
    def group(self) -> str:
        if self.phase == "drawing":
            return DRAWING
        if self.phase == "update":
            return UPDATE
        return kind(self.name)

    @property
    def fusible(self) -> bool:
        return self.phase != "update" and kind(self.name) in LIGHT

    @property
    def bytes(self) -> int:
        return sum(self.read.values()) + sum(self.written.values())


def kind(name: str) -> str:
    """The group of an operation of the loss."""
    if "attention" in name:
        return "attention"
    if "convolution" in name:
        return "convolutions"
    if name.split("::")[-1].split(".")[0] in ("mm", "addmm", "bmm", "baddbmm"):
        return "products"
    if "norm" in name:
        return "norms"
    if any(part in name for part in ("copy", "clone", "cat", "stack", "fill", "zero")):
        return "casts and copies"
    return "elementwise and sums"


@dataclass
class Recorder(TorchDispatchMode):
    """Every operation that moves or computes numbers, of tensors that have none."""

    phase: Phase = "drawing"
    operations: list[Operation] = field(default_factory=list)
    drawn: dict[int, int] = field(default_factory=dict)  # what the loss begins with
    kept: list[Any] = field(default_factory=list)  # storages: their addresses must not be given away again

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.name()
        still = func.is_view or any(part in name for part in ("detach", "_unsafe_view", "empty"))
        if name.startswith("aten::") and not still:
            read, written = self.sizes((args, kwargs)), self.sizes(out)
            for value, argument in zip(args, func._schema.arguments, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    written |= self.sizes(value)
            counter = flop_registry.get(func._overloadpacket)
            flops = float(counter(*args, **kwargs, out_val=out)) if counter else attention_flops(name, args)
            if read or written:
                self.operations.append(Operation(name, self.phase, flops, read, written))
        return out

    def sizes(self, values: Any) -> dict[int, int]:
        found: dict[int, int] = {}
        for tensor in tree_leaves(values):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.kept.append(storage)
                size = min(tensor.numel() * tensor.element_size(), storage.nbytes())
                found[storage._cdata] = max(size, found.get(storage._cdata, 0))
        return found


def attention_flops(name: str, args: Sequence[Any]) -> float:
    """Of the CPU's fused attention, which torch's counter does not know: 2 products forward, 5 back."""
    if "attention" not in name:
        return 0.0
    back = "backward" in name
    n, heads, tokens, width = (args[1] if back else args[0]).shape
    return float((5 if back else 2) * 2 * n * heads * tokens**2 * width)


def training_step(config: RunConfig) -> Recorder:
    """Of one process without micro-batches."""
    with without_numbers():
        objective = build_objective(config).train()
    recorder = Recorder()
    # On the meta device, as on a CPU other operations make views; autocast, which is off here, does not know it.
    with recorder, mock.patch("torch.autocast", return_value=contextlib.nullcontext()):
        drawn = objective.draw(batch_of(config), 0)
        recorder.drawn = recorder.sizes(drawn)
    with FakeTensorMode(allow_non_fake_inputs=True), as_a_gpu():
        fill(objective)
        drawn = {name: torch.empty_like(value, device="cpu") for name, value in drawn.items()}
        optimizer = make_optimizer(objective, config.optimizer)
        averages = EMA(objective.network, config.training.ema, config.training.power_ema, config.training.steps)
        for mode in (contextlib.nullcontext(), recorder):  # the first step allocates
            optimizer.zero_grad(set_to_none=True)
            with mode:
                recorder.phase = "loss"
                with autocast(config):
                    loss = objective(drawn)["loss"]
                loss.backward()
                recorder.phase = "update"
                update(objective, optimizer, averages, config)
    return recorder


def update(objective: Objective, optimizer: Optimizer, averages: EMA, config: RunConfig) -> None:
    """What `Learner` does once there are gradients."""
    trained = [p for p in objective.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if config.optimizer.clip is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, config.optimizer.clip, norm)
    optimizer.set_rate(config.optimizer.lr)
    optimizer.step()
    objective.after_step(0)
    averages.update(1)


def network_pass(config: RunConfig, count: int) -> Recorder:
    """One evaluation of `count` images, without gradients."""
    with without_numbers():
        objective = build_objective(config).eval()
    assert isinstance(objective, GeneratorObjective)
    with FakeTensorMode(allow_non_fake_inputs=True), as_a_gpu():
        fill(objective)
        x = torch.empty(count, config.data.channels, config.data.image_size, config.data.image_size)
        labels = torch.zeros(count, dtype=torch.int64) if config.model.num_classes else None
        with torch.no_grad(), autocast(config), Recorder(phase="loss") as recorder:
            objective.denoiser(x, torch.ones(count), labels)
    return recorder


def as_a_gpu() -> Any:
    """Attention in half precision stays in it, which on a CPU is differentiated in float32."""
    return mock.patch("epg.networks.layers.slow_backward", return_value=False)


def batch_of(config: RunConfig) -> Batch:
    count, side = config.training.batch_size, config.data.image_size
    images = torch.empty(count, config.data.channels, side, side, dtype=torch.uint8, device="meta")
    return Batch(images, torch.empty(count, dtype=torch.int64, device="meta"), torch.arange(count), 0)


def fill(objective: Objective) -> None:
    """Gives what was built on the meta device memory, or what FakeTensorMode takes for it."""
    for module in objective.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            there = torch.empty_like(value, device="cpu")
            setattr(
                module, name, nn.Parameter(there, value.requires_grad) if isinstance(value, nn.Parameter) else there
            )


def autocast(config: RunConfig) -> torch.autocast:
    dtype = torch.float16 if config.training.precision == "fp16" else torch.bfloat16
    return torch.autocast("cpu", dtype, enabled=config.training.precision != "fp32")
