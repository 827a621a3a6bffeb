"""Building blocks shared by encoder and decoder."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from epg.distributed import all_reduce_sum, world_size
from epg.networks.precision import HALF


def sinusoidal_embedding(c: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """`[cos, sin]` embedding of c(t): (N,) -> (N, width), at least float32. An odd width is padded with a zero."""
    half = width // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, device=c.device) / half)
    angles = full_precision(c)[:, None] * frequencies  # (N, half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width - 2 * half))


def full_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in HALF else x


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in (at least) float32; returns the dtype of its input."""

    def __init__(self, width: int) -> None:
        super().__init__(width, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = full_precision(self.weight), full_precision(self.bias)
        return F.layer_norm(full_precision(x), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def slow_backward(qkv: Tensor) -> bool:
    """Whether attention is to be differentiated in half precision on a CPU, which takes five times as long as in
    float32."""
    return qkv.dtype in HALF and qkv.requires_grad and qkv.device.type == "cpu"


class Attention(nn.Module):
    """Multi-head self-attention, qkv without bias."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        if slow_backward(qkv):
            with torch.autocast("cpu", enabled=False):
                mixed = self.mixed(qkv.float()).to(qkv.dtype)
        else:
            mixed = self.mixed(qkv)
        return self.proj(mixed)

    def mixed(self, qkv: Tensor) -> Tensor:
        """Values mixed by how well queries and keys agree: (N, T, 3 D) -> (N, T, D)."""
        n, t, d = *qkv.shape[:2], qkv.shape[2] // 3
        parts = qkv.view(n, t, 3, self.heads, d // self.heads).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in parts)  # (N, K, T, D/K)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, d)


class MLP(nn.Module):
    """Two linear layers with exact GELU between."""

    def __init__(self, width: int, ratio: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, int(width * ratio))
        self.fc2 = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Skip fusion, then an adaLN-Zero transformer block.

    x (N, T, D), skip (N, T, D_encoder), condition (N, D_encoder); `dropout` multiplies the attention's output,
    (N, T, D): 0 or 1 / keep, see `epg.objectives.consistency`.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float, encoder_width: int) -> None:
        super().__init__()
        self.skip_linear = nn.Linear(width + encoder_width, width)
        self.skip_norm = LayerNorm(width)
        self.norm1 = LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = LayerNorm(width)
        self.mlp = MLP(width, mlp_ratio)
        self.modulation = nn.Linear(encoder_width, 6 * width)

    def forward(self, x: Tensor, skip: Tensor, condition: Tensor, dropout: Tensor | None = None) -> Tensor:
        x = self.skip_norm(full_precision(self.skip_linear(torch.cat([x, skip], dim=-1))))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)
        a = self.attention(self.norm1(x) * (1 + scale1) + shift1)
        x = x + gate1 * (a if dropout is None else a * dropout)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class BatchNorm(nn.Module):
    """Batch normalisation of (N, D) features, with statistics of the global batch over all processes.

    Written out because torch's synchronised version runs on GPUs only, and one process must equal two on a CPU as
    well. Shares its state's names and meaning with `nn.BatchNorm1d`.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, width: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        dtype, x = x.dtype, full_precision(x)
        if self.training:
            count = len(x) * world_size()
            if count < 2:
                raise ValueError("batch statistics need at least 2 samples in the global batch")
            mean = all_reduce_sum(x.sum(0)) / count
            var = all_reduce_sum((x - mean).square().sum(0)) / count
            with torch.no_grad():
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
                self.running_var.lerp_((var * count / (count - 1)).to(self.running_var), self.momentum)
                self.num_batches_tracked += 1
        else:
            mean, var = self.running_mean, self.running_var
        return ((x - mean) * (var + self.eps).rsqrt() * self.weight + self.bias).to(dtype)


class ConvPair(nn.Sequential):
    """Two 3x3 convolutions with GELU between: (N, channels, H, W) -> (N, out, H, W), channels last in memory."""

    def __init__(self, channels: int, hidden: int, out: int) -> None:
        super().__init__(nn.Conv2d(channels, hidden, 3, padding=1), nn.GELU(), nn.Conv2d(hidden, out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous(memory_format=torch.channels_last))


class PatchEmbedding(nn.Conv2d):
    """Patches p x p of images (N, C, H, W), each times the same matrix: (N, H / p * W / p, width).

    A convolution whose stride is its kernel, with that one's parameters, in one matrix product.
    """

    def __init__(self, channels: int, width: int, patch_size: int) -> None:
        super().__init__(channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        p = self.kernel_size[0]
        rows = x.permute(0, 2, 3, 1).reshape(n, h // p, p, w // p, p, c).transpose(2, 3)  # (N, H/p, W/p, p, p, C)
        return F.linear(rows.reshape(n, -1, p * p * c), self.weight.permute(0, 2, 3, 1).flatten(1), self.bias)


def init_linear(module: nn.Module) -> None:
    """Xavier-uniform linear weights and zero biases, the transformer initialisation used throughout."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def zero_linear(linear: nn.Linear | nn.Conv2d) -> None:
    """A linear layer (or convolution) that starts at zero: what it feeds starts as the identity."""
    assert linear.bias is not None
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)


def transformer_blocks(module: nn.Module) -> list[nn.Module]:
    """The repeated blocks: the unit of compiling, recomputing and sharding."""
    return [child for child in module.modules() if isinstance(child, EncoderBlock | DecoderBlock)]
