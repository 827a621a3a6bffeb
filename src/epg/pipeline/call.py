"""The pipeline as the folder ships it: labels, seeds and noise in diffusers' manner around `epg.generator`.

This file and what it uses of the package travel with every saved folder (`epg.pipeline.bundle`).
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Optional, Self

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from torch import Tensor

from epg.labels import Labels
from epg.pipeline.arguments import (
    CALLBACK_INPUTS,
    InterruptedDraw,
    Randomness,
    RequestedGenerator,
    as_output,
    label_ids,
    refuse_unknown,
    requested_generator,
    requested_labels,
    seeds_of,
    settings_of,
)
from epg.pipeline.saving import CODE, PIPELINE_CONFIG, refuse_another_pipeline, write_code
from epg.storage.seal import SEAL, check_settings

# diffusers 0.33 to 0.36 read classes and typing.Union in the annotations of `__init__`, but not `dict | None`.
Settings = Optional[dict]  # type: ignore[type-arg]  # noqa: UP045
Names = Optional[list]  # type: ignore[type-arg]  # noqa: UP045


class EPGPipeline(DiffusionPipeline):
    """Draws images with an EPG model, class-conditional or not, diffusion or consistency.

    Args:
        transformer: an `EPGModel`.
        parameterization: "x", "edm" or "spectral", see `epg.denoiser`.
        noise: sigma_min, sigma_max, rho and sigma_data (unshifted), and `shift`.
        normalization: `mean` and `std` per channel of pixels in [0, 1].
        sampling: sampler, steps, guidance and interval that a call takes where it names no others.
        id2label: names of the classes; commas separate synonyms.
        trained_in: sha256 of the encoders in whose features the model was trained: no judges of it.
    """

    model_cpu_offload_seq = "transformer"
    _callback_tensor_inputs = CALLBACK_INPUTS

    def __init__(
        self,
        transformer: ModelMixin,
        parameterization: str = "x",
        noise: Settings = None,
        normalization: Settings = None,
        sampling: Settings = None,
        id2label: Settings = None,
        trained_in: Names = None,
    ) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)
        self.register_to_config(
            parameterization=parameterization,
            noise=noise,
            normalization=normalization,
            sampling=sampling,
            id2label={str(key): name for key, name in (id2label or {}).items()} or None,
            trained_in=list(trained_in or ()) or None,
        )
        self.labels: dict[str, int] = {}
        for key, name in (id2label or {}).items():
            self.labels |= dict.fromkeys((name, *(synonym.strip() for synonym in name.split(","))), int(key))
        self._guidance_scale, self._num_timesteps, self._interrupt = 1.0, 0, False

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in diffusers. Raises ArtefactError where the settings were changed since they were sealed."""
        if SEAL in config_dict:
            check_settings(config_dict, Path(PIPELINE_CONFIG))
        own = {name: value for name, value in config_dict.items() if name not in (SEAL, "auto_map")}
        return super().extract_init_dict(own, **kwargs)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Self:
        """Another pipeline around the same model, in its precision, with these settings in place of its own.

        Args:
            kwargs: arguments of the class; `dtype` or `torch_dtype` to convert the model, which both then share.

        Raises ValueError for a pipeline of another kind of model.
        """
        own = getattr(pipeline, "transformer", None)
        if type(own).__name__ != "EPGModel":
            raise ValueError(f"from_pipe: {type(pipeline).__name__} holds no EPGModel; only pipelines with one fit")
        dtypes = [kwargs.pop(name, None) for name in ("dtype", "torch_dtype")]
        names = inspect.signature(cls.__init__).parameters.keys() & pipeline.config.keys() - {"transformer"}
        settings = {name: pipeline.config[name] for name in names}
        pipe = cls(**{"transformer": pipeline.transformer, **settings, **kwargs})
        return pipe if dtypes == [None, None] else pipe.to(dtypes[0] or dtypes[1])

    @property
    def guidance_scale(self) -> float:
        """Of the latest call."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1

    @property
    def num_timesteps(self) -> int:
        """Steps of the latest call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the call under way ends after this step: a callback sets `pipe._interrupt = True`."""
        return self._interrupt

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Class numbers of one or several names. Raises ValueError for a name that the model does not know."""
        return label_ids(label, self.config.id2label or {}, self.transformer.num_classes)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Labels | None = None,
        guidance_scale: float | None = None,
        generator: Randomness = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        *,
        guide: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        sampler: str | None = None,
        grid: str | None = None,
        sigmas: Sequence[float] | None = None,
        batch_size: int | None = None,
        latents: Tensor | None = None,
        first_index: int = 0,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws one image for every label, all in one batch. What is None is as the model was saved.

        Args:
            class_labels: numbers or names; none for an unconditional model.
            guidance_scale: of guidance; 1 is none.
            generator: a seed, one `torch.Generator`, or one for each image. A seed s, or a fresh generator
                `torch.manual_seed(s)`, gives the images of `epg sample --seed s`; a used one gives others. Image i
                depends on the seed, its index and its label alone, never on the batch.
            num_inference_steps: levels of the grid; for a consistency model 1 is one-step and more is multi-step.
            output_type: "pil", "np" (N, H, W, C) or "pt" (N, C, H, W) in [0, 1], or "latent", the network's values.
            guide: unconditional (classifier-free guidance) or internal.
            guidance_interval: unshifted levels (low, high] in which guidance acts.
            sampler: one of heun, euler, edm_stochastic, euler_ancestral, one_step, multistep.
            grid: where the levels lie, karras or uniform_t.
            sigmas: unshifted noise levels to take instead of the grid, falling.
            batch_size: number of images of an unconditional model; 1 if not given.
            latents: standard normal noise (N, C, H, W) to start from, instead of the generator's.
            first_index: index of the first image of a seed: `epg sample` numbers its files by it.
            callback_on_step_end: called as `callback(pipe, step, sigma, {"latents": x})` with the shifted level the
                step began at; "latents" in what it returns take the place of x. Where it sets `pipe._interrupt`,
                drawing ends there, and the images are what the network predicts so far.

        Raises:
            ValueError: an argument is out of range or does not fit this model.
        """
        given: dict[str, Any] = {"sampler": sampler, "steps": num_inference_steps, "grid": grid, "levels": sigmas}
        given |= {"guide": guide, "guidance": guidance_scale, "interval": guidance_interval}
        classes = self.transformer.num_classes
        settings = settings_of(given, self.config, conditional=classes > 0, internal=self.transformer.config.internal)
        labels, count = requested_labels(class_labels, batch_size, self.config.id2label or {}, classes)
        refuse_unknown(output_type, callback_on_step_end_tensor_inputs)
        seeds = seeds_of(generator, count, first_index)
        model = requested_generator(self.transformer, self.config, settings, seeds, latents, self._execution_device)
        self._guidance_scale, self._interrupt = float(settings["guidance"]), False
        values = self._walk(model, labels, count, callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.maybe_free_model_hooks()
        images = as_output(values, model.normalizer, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _walk(
        self,
        model: RequestedGenerator,
        labels: Tensor | None,
        count: int,
        callback: Callable[..., dict[str, Any]] | None,
        inputs: Sequence[str],
    ) -> Tensor:
        """Network values of all images, with the progress bar and the caller's callback after every step."""
        grid = model.sigmas()
        self._num_timesteps = len(grid) - 1
        with self.progress_bar(total=self._num_timesteps) as bar:

            def watch(step: int, x: Tensor, denoised: Tensor) -> None:
                bar.update()
                if callback is not None:
                    tensors = {"latents": x, "denoised": denoised}
                    changed = callback(self, step, float(grid[step]), {name: tensors[name] for name in inputs}) or {}
                    if changed.get("latents", x) is not x:
                        x.copy_(changed["latents"])
                    if self._interrupt:
                        raise InterruptedDraw(denoised)

            try:
                return model.draw(labels, range(count), watch=watch)
            except InterruptedDraw as stopped:
                return stopped.args[0]

    def code(self) -> dict[str, str]:
        """The modules (name -> text) that a saved folder carries: those that this pipeline itself was loaded from."""
        network = getattr(self.transformer, "_orig_mod", self.transformer)  # what torch.compile wraps
        classes = {"pipeline": type(self), "transformer": type(network)}
        return {CODE[part]: Path(inspect.getfile(kind)).read_text() for part, kind in classes.items()}

    def save_pretrained(
        self,
        save_directory: Any,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Writes a folder that needs nothing but diffusers: weights, configuration, and the code beside them, sealed.

        Raises ValueError for pickles, ArtefactError where the folder holds another pipeline.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False: weights are saved as safetensors alone, never as pickles")
        folder, code = Path(save_directory), self.code()
        refuse_another_pipeline(folder)
        super().save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        write_code(folder, code)
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), **kwargs)
