"""`EPGModel`: the network in diffusers' dress."""

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin

from epg.networks import EPG
from epg.networks.precision import to_half_precision
from epg.pipeline import EPGModel
from tests.generators import lively_epg, tiny_generator
from tests.helpers import tiny_config
from tests.pipeline.common import LABELS, tiny_pipeline


@pytest.fixture
def model() -> EPGModel:
    return tiny_pipeline().transformer


INPUTS = (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(2), torch.tensor([0, 2]))


def test_it_is_the_network(model):
    network = lively_epg(tiny_config())
    assert isinstance(model, EPG | ModelMixin | ConfigMixin)
    assert model.state_dict().keys() == network.state_dict().keys()
    assert torch.equal(model(*INPUTS), network(*INPUTS))


def test_config_and_weights_come_back(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    again = EPGModel.from_pretrained(tmp_path)
    assert dict(again.config, _name_or_path=None) == dict(model.config, _name_or_path=None)
    assert torch.equal(again(*INPUTS), model(*INPUTS))
    assert not again.training
    assert EPGModel.from_config(model.config).config.depth == 2


def test_a_pickle_is_not_read(model, tmp_path):
    model.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "diffusion_pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        EPGModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_that_of_the_generator(model, tmp_path, dtype):
    model.save_pretrained(tmp_path)
    reference = tiny_generator().denoiser.network
    to_half_precision(reference, dtype)
    for half in (tiny_pipeline().transformer.to(dtype), EPGModel.from_pretrained(tmp_path, torch_dtype=dtype)):
        assert half.dtype == dtype
        types = {name: tensor.dtype for name, tensor in half.state_dict().items()}
        assert types == {name: tensor.dtype for name, tensor in reference.state_dict().items()}
        assert {torch.float32, dtype} == set(types.values())
        assert all(torch.equal(tensor, reference.state_dict()[name]) for name, tensor in half.state_dict().items())
    if dtype == torch.bfloat16:
        difference = (half(*INPUTS).float() - model(*INPUTS)).abs().mean() / model(*INPUTS).abs().mean()
        assert 0 < difference < 0.02
    assert half.to(torch.float32).dtype == torch.float32


def test_a_pipeline_in_bfloat16():
    plain = tiny_pipeline()(LABELS, generator=1, output_type="pt").images
    pipe = tiny_pipeline().to(torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    assert pipe.to("cpu").dtype == torch.bfloat16
    images = pipe(LABELS, generator=1, output_type="pt").images
    assert images.dtype == torch.float32
    assert 0 < (images - plain).abs().mean() <= 2 / 255


def test_gradient_checkpointing(model):
    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        model(*INPUTS).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    plain, calls = gradients(), []
    assert not model.is_gradient_checkpointing

    def counted(function, *inputs):
        calls.append(function)
        return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)

    model.enable_gradient_checkpointing(counted)
    assert model.is_gradient_checkpointing
    assert all(torch.equal(a, b) for a, b in zip(gradients(), plain, strict=True))
    assert len(calls) == 4  # every block of encoder and decoder
    with torch.no_grad():
        model(*INPUTS)
    assert len(calls) == 4
    model.enable_gradient_checkpointing()
    assert all(torch.equal(a, b) for a, b in zip(gradients(), plain, strict=True))
    model.disable_gradient_checkpointing()
    gradients()
    assert len(calls) == 4
    assert not model.is_gradient_checkpointing


def test_compiling_the_repeated_blocks(model):
    """With the backend that runs what was traced, which needs no compiler here."""
    expected = model(*INPUTS)
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    compiled = [m for m in model.modules() if m._compiled_call_impl is not None]
    assert {type(m).__name__ for m in compiled} == set(EPGModel._repeated_blocks)
    assert len(compiled) == 4
    with torch.no_grad():
        assert torch.allclose(model(*INPUTS), expected, atol=1e-6)


def test_a_compiled_model_saves_and_samples(tmp_path):
    pipe = tiny_pipeline()
    expected = pipe(LABELS, generator=1, output_type="pt").images
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert torch.allclose(pipe(LABELS, generator=1, output_type="pt").images, expected, atol=1e-5)
    pipe.save_pretrained(tmp_path / "p")
    assert (tmp_path / "p" / "transformer" / "modeling_epg.py").is_file()
    assert '"modeling_epg",\n    "EPGModel"' in (tmp_path / "p" / "model_index.json").read_text()


def test_blocks_that_must_stay_whole_exist(model):
    names = {type(module).__name__ for module in model.modules()}
    assert set(EPGModel._no_split_modules) <= names
    assert all(any(p in n for n, _ in model.named_parameters()) for p in EPGModel._skip_layerwise_casting_patterns)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.gpu
def test_on_a_gpu():
    plain = tiny_pipeline()(LABELS, generator=1, output_type="pt").images
    pipe = tiny_pipeline().to("cuda")
    images = pipe(LABELS, generator=1, output_type="pt").images
    assert images.device.type == "cuda"
    assert (images.cpu() - plain).abs().max() < 1e-3
    with pytest.raises(ValueError, match="class_labels: 3"):
        pipe([3])
    assert len(pipe([2], generator=1).images) == 1  # the device is alive
