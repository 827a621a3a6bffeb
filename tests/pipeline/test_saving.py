"""Saving over what was saved before, loading what does not fit, and what diffusers' users expect of a pipeline."""

import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file

from epg import load
from epg.errors import ArtefactError
from epg.pipeline import EPGModel, EPGPipeline
from tests.generators import tiny_generator
from tests.pipeline.common import LABELS, pixels, quiet, tiny_pipeline

SMALL: dict[str, Any] = {  # a U-Net
    "block_out_channels": (32,),
    "down_block_types": ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",),
}
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def drawn(pipe: EPGPipeline) -> torch.Tensor:
    return pixels(quiet(pipe)(LABELS, generator=1).images)


def other_pipeline() -> EPGPipeline:
    return EPGPipeline.from_generator(tiny_generator(seed=1))


def test_saved_again_in_other_pieces(tmp_path: Path) -> None:
    """No index and no piece of an earlier save is left to be loaded in place of the new weights."""
    for size in ("50KB", "10GB", "30KB", "60KB", "10GB"):
        pipe = tiny_pipeline() if size == "30KB" else other_pipeline()
        pipe.save_pretrained(tmp_path, max_shard_size=size)
        assert (tmp_path / "transformer" / INDEX).exists() == (size != "10GB")
        assert torch.equal(drawn(EPGPipeline.from_pretrained(tmp_path)), drawn(pipe))
        assert load(tmp_path).sigmas().shape


def test_variants_live_side_by_side(tmp_path: Path) -> None:
    model, average = tiny_pipeline().transformer, other_pipeline().transformer
    model.save_pretrained(tmp_path)
    average.save_pretrained(tmp_path, variant="ema", max_shard_size="50KB")
    pieces = sorted(tmp_path.glob("diffusion_pytorch_model.ema-*.safetensors"))
    assert len(pieces) > 1
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert sorted(tmp_path.glob("diffusion_pytorch_model.ema-*.safetensors")) == pieces
    found = EPGModel.from_pretrained(tmp_path, variant="ema").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in average.state_dict().items())
    found = EPGModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("part", ["pipeline", "model"])
def test_pickles_are_not_written(part: str, tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    saved = other_pipeline()
    with pytest.raises(ValueError, match="never as pickles"):
        (saved if part == "pipeline" else saved.transformer).save_pretrained(tmp_path, safe_serialization=False)
    assert torch.equal(drawn(EPGPipeline.from_pretrained(tmp_path)), drawn(tiny_pipeline()))


def test_missing_tensors_are_an_error(tmp_path: Path) -> None:
    tiny_pipeline().transformer.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["encoder.cls_token"], weights["class_embedding.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match=r"the weights lack class_embedding\.weight, encoder\.cls_token"):
        EPGModel.from_pretrained(tmp_path)


def test_other_classes_begin_as_in_a_new_network(tmp_path: Path) -> None:
    """Only what was resized does; the rest is as it was saved, and it can be told what that was."""
    model = tiny_pipeline().transformer
    model.save_pretrained(tmp_path)
    found, told = EPGModel.from_pretrained(
        tmp_path, num_classes=50, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert [key for key, *_ in told["mismatched_keys"]] == ["class_embedding.weight"]
    new = EPGModel(**{**model.config, "num_classes": 50})
    assert found.class_embedding.weight.shape == (51, 16)
    assert float((found.class_embedding.weight.std() / new.class_embedding.weight.std()).detach()) == pytest.approx(
        1, abs=0.2
    )
    same = {name for name in model.state_dict() if name != "class_embedding.weight"}
    assert all(torch.equal(found.state_dict()[name], model.state_dict()[name]) for name in same)
    assert found(torch.randn(1, 1, 8, 8), torch.zeros(1), torch.tensor([49])).isfinite().all()


def test_weights_that_nobody_sealed_are_not_loaded(tmp_path: Path) -> None:
    """Somebody puts sharded weights beside the saved ones: diffusers alone would prefer them."""
    tiny_pipeline().transformer.save_pretrained(tmp_path / "a")
    other_pipeline().transformer.save_pretrained(tmp_path / "b", max_shard_size="50KB")
    for file in (tmp_path / "b").glob("*.safetensors*"):
        file.rename(tmp_path / "a" / file.name)
    with pytest.raises(ArtefactError, match="is not in the seal of its folder"):
        EPGModel.from_pretrained(tmp_path / "a")


# What diffusers' users expect -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_pipe(dtype: torch.dtype) -> None:
    pipe = quiet(tiny_pipeline().to(dtype))
    again = quiet(EPGPipeline.from_pipe(pipe, sampling={"sampler": "euler", "steps": 3}))
    assert again.transformer is pipe.transformer
    assert again.transformer.dtype == dtype
    assert again.labels == pipe.labels
    again(LABELS, generator=0)
    assert again.num_timesteps == 3
    assert torch.equal(drawn(EPGPipeline.from_pipe(pipe)), drawn(pipe))


def test_from_pipe_of_another_kind() -> None:
    with pytest.raises(ValueError, match="from_pipe: DDPMPipeline holds no EPGModel"):
        EPGPipeline.from_pipe(DDPMPipeline(UNet2DModel(8, **SMALL), DDPMScheduler()))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"generator": "x"}, "generator 'x'"),
        ({"generator": ["a", "b"]}, "generator"),
        ({"class_labels": []}, "nothing"),
    ],
)
def test_calls_with_nothing_to_draw_from(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        quiet(tiny_pipeline())(**{"class_labels": [0, 1], **given})


def test_usual_properties_and_interruption() -> None:
    pipe, seen = quiet(tiny_pipeline()), []

    def stop(pipe: EPGPipeline, step: int, sigma: float, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((step, pipe.num_timesteps, pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.interrupt))
        pipe._interrupt = step == 2
        return tensors

    images = pipe([0, 1], guidance_scale=2.0, num_inference_steps=8, generator=0, callback_on_step_end=stop).images
    assert seen == [(step, 8, 2.0, True, False) for step in range(3)]
    assert len(images) == 2
    assert pipe.interrupt
    pipe([0], generator=0)
    assert not pipe.interrupt  # the next call is not stopped
    assert not pipe.do_classifier_free_guidance


@pytest.mark.parametrize("kind", [EPGPipeline, EPGModel])
def test_annotations_are_of_kinds_that_every_diffusers_reads(kind: type) -> None:
    """0.33 to 0.36 read a class, or typing.Union of classes; of `X | None`, or a generic, they make a KeyError."""
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name == "self":
            continue
        annotation = parameter.annotation
        assert not isinstance(annotation, str | types.UnionType), name
        members = typing.get_args(annotation) if typing.get_origin(annotation) is typing.Union else (annotation,)
        assert all(inspect.isclass(member) and not typing.get_args(member) for member in members), name


def test_a_folder_says_which_class_loads_it(tmp_path: Path) -> None:
    tiny_pipeline().save_pretrained(tmp_path)
    for file in ("model_index.json", "transformer/config.json"):
        assert json.loads((tmp_path / file).read_text())["auto_map"] == {"AutoModel": "modeling_epg.EPGModel"}
