"""`EPGPipeline` as this package offers it: from a `Generator` or a folder, with the code that is installed."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch

from epg.drawing import SETTINGS
from epg.generator import Generator
from epg.pipeline import bundle, call, folder
from epg.pipeline.arguments import NOISE
from epg.pipeline.model import EPGModel
from epg.storage import hub

# Arguments of `DiffusionPipeline.from_pretrained` that say what holds here anyway.
IGNORED = {"trust_remote_code", "custom_pipeline", "use_safetensors", "low_cpu_mem_usage"}
LOADING = {"device_map", "max_memory", "offload_folder", "offload_state_dict", "quantization_config"}
HUB = {"token", "cache_dir", "local_files_only", "force_download", "revision"}


class EPGPipeline(call.EPGPipeline):
    __doc__ = call.EPGPipeline.__doc__

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        dtype: torch.dtype | None = None,
        torch_dtype: torch.dtype | None = None,
        variant: str | None = None,
        transformer: EPGModel | None = None,
        **kwargs: Any,
    ) -> Self:
        """The pipeline of a folder, or of a repository of the Hub. Needs and runs no code that lies beside the weights.

        Args:
            dtype: of the weights that are multiplied; float32 if not given. `torch_dtype` is the same.
            variant: of the weight files, such as "fp16".
            transformer: a model to use in place of the folder's.
            kwargs: token, revision, cache_dir, local_files_only, force_download; device_map, max_memory,
                offload_folder, quantization_config as in diffusers; or settings in place of the folder's.

        Raises:
            ArtefactError: nothing there, damaged files, or settings that this version does not know.
        """
        options = {name: kwargs.pop(name) for name in HUB & kwargs.keys()}
        loading = {name: value for name in LOADING & kwargs.keys() if (value := kwargs.pop(name)) is not None}
        saved = folder.read(hub.local(pretrained_model_name_or_path, **options))
        settings = saved.settings.model_dump()
        unknown = kwargs.keys() - settings.keys() - IGNORED
        if unknown:
            raise TypeError(f"from_pretrained: unexpected {', '.join(sorted(unknown))}")
        wanted = dtype or torch_dtype
        if transformer is None and loading:
            transformer = placed(saved.path / folder.COMPONENT, loading, dtype=wanted, variant=variant)
        elif transformer is None:
            with torch.device("meta"):
                transformer = EPGModel(**saved.model.model_dump())
            fill(transformer, saved.tensors(variant))
        pipe = cls(transformer, **settings | {name: value for name, value in kwargs.items() if name not in IGNORED})
        pipe.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        if loading:
            pipe.hf_device_map = getattr(transformer, "hf_device_map", None)
            return pipe
        return pipe if wanted is None else pipe.to(wanted)

    @classmethod
    def from_generator(cls, model: Generator, trained_in: Sequence[str] = ()) -> Self:
        """A pipeline around a generator's network, weights shared, that samples as the generator does."""
        network = model.denoiser.network
        with torch.device("meta"):
            transformer = EPGModel(**asdict(network.shape))
        fill(transformer, network.state_dict())
        noise = {name: getattr(model.noise, name) for name in NOISE}
        sampling = {name: getattr(model.sampling, name) for name in SETTINGS}
        return cls(
            transformer,
            parameterization=model.denoiser.parameterization,
            noise={**noise, "shift": model.shift},
            normalization={"mean": list(model.normalizer.mean), "std": list(model.normalizer.std)},
            sampling={name: list(value) if isinstance(value, tuple) else value for name, value in sampling.items()},
            id2label=dict(enumerate(model.class_names)) or None,
            trained_in=list(trained_in) or None,
        )

    def code(self) -> dict[str, str]:
        return bundle.code()


def placed(path: Path, loading: dict[str, Any], **options: Any) -> EPGModel:
    """The model where and how accelerate and a quantizer put it."""
    quantization = loading.pop("quantization_config", None)
    if hasattr(quantization, "_resolve_quant_config"):  # one for a whole pipeline names its components
        quantization = quantization._resolve_quant_config(is_diffusers=True, module_name=folder.COMPONENT)
    model = EPGModel.from_pretrained(path, quantization_config=quantization, **loading, **options)
    assert isinstance(model, EPGModel)
    return model


def fill(transformer: EPGModel, tensors: dict[str, torch.Tensor]) -> None:
    """Gives a model without values these, as float32, ready to infer."""
    transformer.load_state_dict({name: tensor.detach().float() for name, tensor in tensors.items()}, assign=True)
    transformer.eval()
