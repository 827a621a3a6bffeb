"""A trained generator for other classes, another image size, other patches: `epg finetune --from`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from epg.checkpoint.loading import load
from epg.checkpoint.official import EPG_NAMES, to_release
from epg.checkpoint.refit import Refit, bilinear, class_rows, refit
from epg.cli import main
from epg.networks import EPG, NetworkShape
from tests.helpers import tiny_config, tiny_epg
from tests.test_runs import folder_of_images

NAMES = ("cat", "dog, hound", "fox")


def shape(**changes: Any) -> NetworkShape:
    sizes = {"sample_size": 8, "patch_size": 2, "depth": 2, "encoder_width": 16, "encoder_heads": 2}
    return NetworkShape(
        **{**sizes, "decoder_width": 24, "decoder_heads": 2, "in_channels": 1, "num_classes": 3, **changes}
    )


def fitted(names: tuple[str, ...] = (), model: EPG | None = None, **changes: Any) -> tuple[EPG, EPG, Refit]:
    """A network, the same for another shape, and what became of it."""
    old = tiny_epg() if model is None else model
    new = shape(**changes)
    found = refit(old.state_dict(), old.shape, new, NAMES if old.num_classes else (), names, "here")
    made = EPG(new).eval()
    missing, unexpected = made.load_state_dict(found.tensors, strict=False)
    assert not unexpected
    assert tuple(missing) == found.new
    return old, made, found


def run(network: EPG, x: Tensor, labels: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return network(x, torch.full((len(x),), -100.0), labels)


def enlarged(images: Tensor) -> Tensor:
    """Every 2x2 patch of 8x8 images bilinearly as 4x4."""
    patches = images.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)  # (N, C, 4, 4, 4)
    scaled = (patches.double() @ bilinear(2, 4).T).float().unflatten(4, (4, 4))
    return scaled.permute(0, 1, 2, 4, 3, 5).reshape(len(images), -1, 16, 16)


def test_scaled_patches_at_fixed_tokens_compute_the_same() -> None:
    """F'(B x) = B F(x), for a B that scales every patch."""
    old, new, found = fitted(sample_size=16, patch_size=4)
    x, labels = torch.randn(3, 1, 8, 8), torch.tensor([0, 1, 2])
    assert torch.allclose(run(new, enlarged(x), labels), enlarged(run(old, x, labels)), atol=1e-4)
    assert sorted(found.resized) == ["decoder.out.bias", "decoder.out.weight", "encoder.patch_embedding.weight"]
    assert set(found.resized.values()) == {"patches of 2 to 4 pixels"}
    assert found.tensors["encoder.position_embedding"].equal(old.encoder.position_embedding)


def test_grown_tokens_keep_everything_but_their_positions() -> None:
    old, new, found = fitted(sample_size=16)
    assert found.resized == {"encoder.position_embedding": "4x4 to 8x8 patches"}
    before, after = (network.encoder.position_embedding[0].detach() for network in (old, new))
    assert after[:2].equal(before[:2])
    grid = after[2:].view(4, 2, 4, 2, -1).mean((1, 3))  # what lies where one token was
    assert float((grid - before[2:].view(4, 4, -1)).norm() / before[2:].norm()) < 0.25
    _, _, both = fitted(sample_size=16, patch_size=8)
    assert both.resized["encoder.position_embedding"] == "4x4 to 2x2 patches"


# Classes --------------------------------------------------------------------------------------------------------------


def test_rows_go_by_name_where_both_sides_have_names() -> None:
    assert class_rows(3, 4, NAMES, ("emu", "hound", "Cat", "ox")) == [None, 1, 0, None]
    assert class_rows(3, 2, (), ("hound", "cat")) == [0, 1]
    assert class_rows(2, 3, NAMES, ("a", "b", "c")) == [0, 1, None]
    assert class_rows(0, 2, (), ("a", "b")) == [None, None]


def test_kept_classes_draw_as_before_and_new_ones_begin_as_no_class() -> None:
    old, new, found = fitted(("emu", "hound"), num_classes=2)
    x = torch.randn(4, 1, 8, 8)
    ours = run(new, x, torch.tensor([0, 1, 2, 2]))
    assert torch.equal(ours, run(old, x, torch.tensor([3, 1, 3, 3])))
    assert found.classes == (
        '1 of 2 rows kept by name (hound); 1 new (emu), which begin as "no class"; 2 left behind (cat, fox)'
    )
    assert found.resized == {"class_embedding.weight": found.classes}


def test_the_same_classes_are_kept_without_a_word() -> None:
    _, _, found = fitted(("cat", "dog", "fox"))
    assert (found.classes, found.resized, found.new) == ("", {}, ())


def test_classes_come_to_a_network_without_any() -> None:
    alone = EPG(shape(num_classes=0)).eval()
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter += 0.1
    _, new, _ = fitted(("cat", "dog"), alone, num_classes=2)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(run(new, x, torch.tensor([0, 1])), run(alone, x))


def test_without_classes_the_encoder_sees_no_class() -> None:
    old, new, found = fitted(num_classes=0)
    x, c = torch.randn(2, 1, 8, 8), torch.tensor([0.0, 100.0])
    nothing = old.embed_labels(None, 2)
    assert torch.allclose(new.encoder(x, c)[0], old.encoder(x, c, nothing)[0], atol=1e-6)
    assert found.classes.startswith("none of 3 left")


# The whole way --------------------------------------------------------------------------------------------------------

RECIPE = """
base: digits
model:
  num_classes: 10
  encoder: {depth: 2, width: 16, heads: 2}
  decoder: {width: 24, heads: 2}
diffusion:
  objective: {flip: true}
  optimizer: {lr: 1.0e-3, warmup_steps: 0}
  training: {batch_size: 8, steps: 2, ema: [0.5], preview_every: 0, log_every: 1, trackers: []}
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, a file as the authors release theirs, and what `epg convert` makes of it."""
    folder = tmp_path_factory.mktemp("released")
    (folder / "mine.yaml").write_text(RECIPE)
    sizes = {"patch_size": 4, "num_classes": 10}
    network = tiny_epg(tiny_config(model=sizes))
    save_file(to_release(network.state_dict(), EPG_NAMES), folder / "nnet_ema.safetensors")
    arguments = ["--recipe", str(folder / "mine.yaml"), "--out", str(folder / "weights")]
    assert main(["convert", str(folder / "nnet_ema.safetensors"), *arguments]) == 0
    folder_of_images(folder / "photos", classes=3, each=8)
    return folder


def finetune(place: Path, out: str, *more: str, base: str = "weights") -> int:
    begin = ["finetune", str(place / "mine.yaml"), "--from", str(place / base), "--out", str(place / out)]
    return main([*begin, "--data.source", str(place / "photos"), *more])


def test_released_weights_go_on_with_own_images_in_one_command(
    released: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three classes of its own instead of ten, twice the size, the encoder frozen."""
    arguments = ["--model.num-classes", "3", "--data.image-size", "16", "--optimizer.frozen-encoder"]
    assert finetune(released, "tuned", *arguments) == 0
    told = capsys.readouterr().err
    assert "generator from" in told
    assert "  resized: 2x2 to 4x4 patches: encoder.position_embedding\n" in told
    assert "  classes: 3 of 3 rows kept by number (class0, class1, class2); 7 left behind\n" in told
    assert "  data.image_size: 8 in the generator, 16 here\n" in told
    record = json.loads((released / "tuned" / "handover.json").read_text())["generator"]
    network = load(released / "tuned").denoiser.network
    assert sorted([*record["kept"], *record["resized"], *record["new"]]) == sorted(network.state_dict())
    assert record["settings"] == {"data.image_size": [8, 16]}
    before = load_file(released / "weights" / "model.safetensors")
    same = [
        name
        for name, value in network.encoder.state_dict().items()
        if value.equal(before.get(f"encoder.{name}", value))
    ]
    assert "blocks.1.mlp.fc2.weight" in same
    assert not network.decoder.norm.weight.equal(before["decoder.norm.weight"])
    assert main(["sample", str(released / "tuned"), "--count", "3", "--out", str(released / "samples")]) == 0


def test_slower_layers_go_with_it(released: Path) -> None:
    """The rate falls towards the first layer: after one step of AdamW that is what the weights have moved."""
    flags = [
        "--optimizer.layer-decay",
        "0.1",
        "--training.steps",
        "1",
        "--training.ema",
        "0",
        "--optimizer.weight-decay",
        "0",
    ]
    assert finetune(released, "slower", *flags) == 0
    before, after = (load(released / name).denoiser.network.state_dict() for name in ("weights", "slower"))
    moved = [
        float((after[name] - before[name]).abs().max())
        for name in (f"encoder.{part}.norm1.weight" for part in ("blocks.0", "blocks.1"))
    ]
    assert moved[0] == pytest.approx(1e-5, rel=0.01)
    assert moved[1] == pytest.approx(1e-4, rel=0.01)


def test_the_spectrum_is_of_the_images_of_the_run(released: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a spectral generator of other images: its statistics are those that training on these alone would have."""
    spectral = ["--objective.parameterization", "spectral", "--training.steps", "1"]
    scratch = ["finetune", str(released / "mine.yaml"), "--from-scratch", *spectral]
    assert main([*scratch, "--out", str(released / "base")]) == 0
    own = ["--data.source", str(released / "photos"), "--model.num-classes", "3"]
    assert main([*scratch, *own, "--out", str(released / "alone")]) == 0
    assert finetune(released, "spectral", *spectral, "--model.num-classes", "3", base="base") == 0
    assert "spectrum.directions, which are measured of this run's images" in capsys.readouterr().err
    ours, alone, base = (load(released / n).denoiser.network.state_dict() for n in ("spectral", "alone", "base"))
    assert ours["spectrum.mean"].equal(alone["spectrum.mean"])
    assert not ours["spectrum.mean"][-1].equal(base["spectrum.mean"][-1])


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["--model.decoder.width", "32"],
            ["model.decoder.width: 24 in the generator, 32 here", "--model.decoder.width 24"],
        ),
        (
            ["--data.channels", "3", "--data.normalization", "imagenet"],
            ["data.channels: 1 in", "as it has them: --data.channels 1 --data.normalization symmetric"],
        ),
        (["--noise.shift", "2"], ["noise.shift: 1.0 in the generator, 2.0 here"]),
        (
            ["--stage", "consistency"],
            [
                "objective.parameterization: x in the generator, edm here",
                "as it has them: --stage diffusion or onestep",
            ],
        ),
        (
            ["--encoder", "{place}/weights"],
            ["--encoder: --stage diffusion goes on with the encoder that is in the generator"],
        ),
        (["--from", "nnet_ema.safetensors"], ["a file; if it is of the authors' release", "epg convert"]),
    ],
)
def test_what_cannot_fit_names_the_cure(
    released: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], messages: list[str]
) -> None:
    base = "nnet_ema.safetensors" if "--from" in arguments else "weights"
    arguments = [argument.format(place=released) for argument in arguments]
    assert finetune(released, "never", *(arguments if base == "weights" else ()), base=base) != 0
    told = capsys.readouterr().err
    assert [message for message in messages if message not in told] == []
    assert not (released / "never" / "checkpoints").exists()
