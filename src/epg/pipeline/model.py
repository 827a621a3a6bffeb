"""`EPGModel`: the network as a diffusers model, saved as `config.json` and safetensors."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from epg.cost.shape import NetworkShape
from epg.errors import ArtefactError
from epg.networks.decoder import EPG
from epg.networks.precision import HALF, to_half_precision
from epg.storage.seal import SEAL, check_file, check_settings, entry_of, files_in, seal_file

MODEL_CONFIG = "config.json"


class EPGModel(EPG, ModelMixin, ConfigMixin):
    """The network F(x, c(t), labels) of `epg.networks.EPG` with what diffusers adds: saving, loading, offloading.

    In half precision the weights that are multiplied are converted; norms, embeddings and residual sums stay float32.

    The arguments are the sizes of an `epg.networks.NetworkShape`.
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
        internal: bool = False,
    ) -> None:
        shape = NetworkShape(
            sample_size=sample_size,
            patch_size=patch_size,
            depth=depth,
            encoder_width=encoder_width,
            encoder_heads=encoder_heads,
            decoder_width=decoder_width,
            decoder_heads=decoder_heads,
            in_channels=in_channels,
            num_classes=num_classes,
            mlp_ratio=mlp_ratio,
            stem=stem,
            gaussians=gaussians,
            internal=internal,
        )
        super().__init__(shape)
        self.gradient_checkpointing = False

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in diffusers. Raises ArtefactError where the configuration was changed since it was sealed."""
        if SEAL in config_dict:
            check_settings(config_dict, Path(MODEL_CONFIG))
        own = {name: value for name, value in config_dict.items() if name not in (SEAL, "auto_map")}
        return super().extract_init_dict(own, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in diffusers, from safetensors alone; a half-precision `dtype` converts after loading, norms excepted.

        With `ignore_mismatched_sizes=True` tensors of another shape begin as those of a new network, so that it can be
        trained on other classes.

        Raises ArtefactError naming the tensors that the folder lacks, or a file that is not as it was saved.
        """
        kwargs.setdefault("use_safetensors", True)
        told = kwargs.pop("output_loading_info", False)
        if kwargs.get("ignore_mismatched_sizes"):
            kwargs["low_cpu_mem_usage"] = False
        wanted = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
        dtype = wanted[0] or wanted[1]
        if kwargs.get("quantization_config") is not None and dtype is not None:
            kwargs["torch_dtype"] = dtype  # of what is not quantized
        model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        if missing := sorted(info["missing_keys"]):
            names = ", ".join(missing[:20]) + (f" and {len(missing) - 20} more" if len(missing) > 20 else "")
            raise ArtefactError(f"{pretrained_model_name_or_path}: the weights lack {names}")
        folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
        if folder.is_dir():
            check_weights(folder, kwargs.get("variant"))
        renewed = {key for key, *_ in info["mismatched_keys"]}
        if renewed:
            fresh = cls.from_config(model.config).state_dict()
            model.load_state_dict({key: fresh[key] for key in renewed}, strict=False)
        if dtype is not None and "torch_dtype" not in kwargs:
            model = model.to(dtype)
        return (model, info) if told else model

    def save_pretrained(
        self,
        save_directory: Any,
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As in diffusers, as safetensors alone and sealed. Weights of this variant that were saved here before are
        replaced, however many files they are; those of other variants stay.

        Raises ValueError for pickles, ArtefactError where the folder holds a model or weights of somebody else.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False: weights are saved as safetensors alone, never as pickles")
        if not is_main_process:
            return
        folder, own = Path(save_directory), weights_pattern(variant)
        folder.mkdir(parents=True, exist_ok=True)
        entries = entries_before(folder / MODEL_CONFIG, type(self).__name__)
        before = {file.name for file in folder.iterdir() if own.fullmatch(file.name)}
        if strange := sorted(before - entries.keys()):
            raise ArtefactError(f"{folder / strange[0]}: was not saved by this class. Choose another folder.")
        with TemporaryDirectory(prefix=".epg-", dir=folder) as temporary:
            options = {"save_function": save_function, "variant": variant, "max_shard_size": max_shard_size}
            super().save_pretrained(temporary, **options)
            made = {file.name: file for file in Path(temporary).iterdir()}
            entries = {name: entry for name, entry in entries.items() if name not in before}
            entries |= {name: entry_of(file) for name, file in made.items() if name != MODEL_CONFIG}
            seal_file(made[MODEL_CONFIG], entries)
            for name in before - made.keys():
                (folder / name).unlink()
            for name, file in sorted(made.items(), key=lambda item: item[0] == MODEL_CONFIG):
                os.replace(file, folder / name)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)  # type: ignore[operator]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that are multiplied."""
        return self.encoder.patch_embedding.weight.dtype

    def to(self, *args: Any, **kwargs: Any) -> Self:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype not in HALF:
            return super().to(*args, **kwargs)
        if device is not None:
            super().to(device)
        torch.nn.Module.to(self, torch.float32)
        to_half_precision(self, dtype)
        return self

    def forward(
        self,
        x: Tensor,
        time_condition: Tensor,
        labels: Tensor | None = None,
        dropout: Any = None,
        internal: bool = False,
        block: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """F (N, C, H, W) from scaled inputs x (N, C, H, W), c(t) (N,) and labels (N,) int64 (None: no class)."""
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype in HALF):
            return super().forward(x, time_condition, labels, dropout, internal, block)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable[..., Any] = checkpoint
    ) -> None:
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func)
        for block in [*self.encoder.blocks, *self.decoder.blocks]:
            block.__dict__.pop("forward", None)
            if enable:
                block.forward = recomputed(block.forward, gradient_checkpointing_func)


def weights_pattern(variant: str | None) -> re.Pattern[str]:
    """Names of the files that hold the weights of a variant, in one or more pieces, and of their index."""
    word = "" if variant is None else rf"\.{re.escape(variant)}"
    one = rf"diffusion_pytorch_model{word}(-\d{{5}}-of-\d{{5}})?\.safetensors"
    return re.compile(rf"{one}|diffusion_pytorch_model\.safetensors\.index{word}\.json")


def entries_before(file: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The weights that were saved beside a `config.json` before. Raises ArtefactError for another model's."""
    if not file.exists():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("_class_name") != kind:
        raise ArtefactError(f"{file}: belongs to another model. Choose another folder.")
    return files_in(content, file)


def check_weights(folder: Path, variant: str | None) -> None:
    """Compares the weights of a variant in a saved model's folder with its seal. Raises ArtefactError."""
    file, own = folder / MODEL_CONFIG, weights_pattern(variant)
    entries = files_in(json.loads(file.read_text(encoding="utf-8")), file)
    names = {name for name in entries if own.fullmatch(name)}
    for name in sorted(names | {f.name for f in folder.iterdir() if own.fullmatch(f.name)}):
        check_file(folder / name, entries.get(name))


def recomputed(forward: Callable[..., Any], through: Callable[..., Any]) -> Callable[..., Any]:
    """`forward` through a checkpointing function wherever a gradient is wanted."""

    def checkpointed(*inputs: Any) -> Any:
        return through(forward, *inputs) if torch.is_grad_enabled() else forward(*inputs)

    return checkpointed
