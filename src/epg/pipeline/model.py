"""`EPGModel`: the network as a diffusers model, saved as `config.json` and safetensors."""

from collections.abc import Callable
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from epg.generator import HALF, to_half_precision
from epg.networks.decoder import EPG
from epg.networks.encoder import Encoder


class EPGModel(EPG, ModelMixin, ConfigMixin):
    """The network F(x, c(t), labels) of `epg.networks.EPG` with what diffusers adds: saving, loading, offloading.

    In half precision the weights that are multiplied are converted; norms, embeddings and residual sums stay float32.

    Args:
        sample_size: side of the square images, a multiple of `patch_size`.
        in_channels: image channels.
        num_classes: 0 builds an unconditional model; the null class of any other is `num_classes`.
        depth: blocks of the encoder, and of the decoder.
        stem: channels of a convolutional stem and head; 0 for none.
        gaussians: of the statistics that spectral preconditioning needs; 0 for none.
    """

    _supports_gradient_checkpointing = True
    _repeated_blocks = ["EncoderBlock", "DecoderBlock"]  # noqa: RUF012
    _no_split_modules = ["EncoderBlock", "DecoderBlock"]  # noqa: RUF012
    _skip_layerwise_casting_patterns = ["embedding", "cls_token", "norm"]  # noqa: RUF012

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int,
        patch_size: int,
        depth: int,
        encoder_width: int,
        encoder_heads: int,
        decoder_width: int,
        decoder_heads: int,
        in_channels: int = 3,
        num_classes: int = 0,
        mlp_ratio: float = 4.0,
        stem: int = 0,
        gaussians: int = 0,
    ) -> None:
        encoder = Encoder(
            image_size=sample_size,
            patch_size=patch_size,
            channels=in_channels,
            depth=depth,
            width=encoder_width,
            heads=encoder_heads,
            mlp_ratio=mlp_ratio,
            stem=stem,
        )
        super().__init__(
            encoder,
            decoder_width=decoder_width,
            decoder_heads=decoder_heads,
            num_classes=num_classes,
            mlp_ratio=mlp_ratio,
            gaussians=gaussians,
        )
        self.gradient_checkpointing = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """As in diffusers, from safetensors alone; a half-precision `dtype` converts after loading, norms excepted."""
        kwargs.setdefault("use_safetensors", True)
        dtype, torch_dtype = kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None)
        model = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        return model if (dtype or torch_dtype) is None else model.to(dtype or torch_dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are multiplied."""
        return self.encoder.patch_embedding.weight.dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype not in HALF:
            return nn.Module.to(self, *args, **kwargs)
        if device is not None:
            nn.Module.to(self, device)
        nn.Module.to(self, torch.float32)
        to_half_precision(self, dtype)
        return self

    def forward(self, x: Tensor, time_condition: Tensor, labels: Tensor | None = None, dropout: Any = None) -> Tensor:
        """F (N, C, H, W) from scaled inputs x (N, C, H, W), c(t) (N,) and labels (N,) int64 (None: no class)."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype in HALF):
            return super().forward(x, time_condition, labels, dropout)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint
    ) -> None:
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func)
        for block in [*self.encoder.blocks, *self.decoder.blocks]:
            block.__dict__.pop("forward", None)
            if enable:
                block.forward = recomputed(block.forward, gradient_checkpointing_func)


def recomputed(forward: Callable[..., Any], through: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` through a checkpointing function wherever a gradient is wanted."""

    def checkpointed(*inputs: Any) -> Any:
        return through(forward, *inputs) if torch.is_grad_enabled() else forward(*inputs)

    return checkpointed
