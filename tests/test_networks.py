import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from epg.config.sections import DataConfig, ModelConfig
from epg.cost.network import Cost, epg_cost, generator_cost, rcm_parameters
from epg.networks import EPG, RCM, Encoder, NetworkShape, Projector
from epg.networks.build import build_epg, build_rcm, without_numbers
from epg.networks.layers import Attention, BatchNorm, LayerNorm, PatchEmbedding, sinusoidal_embedding
from epg.randomness import Draws
from tests.helpers import random_batch, randomize, relative, tiny_config, tiny_epg


def shape(**changes: int) -> NetworkShape:
    """8 pixels in patches of 2, one block of width 16."""
    sizes = {"sample_size": 8, "patch_size": 2, "depth": 1, "encoder_width": 16, "encoder_heads": 2}
    return NetworkShape(**{**sizes, "decoder_width": 24, "decoder_heads": 3, **changes})


# Tables 7 and 8 -----------------------------------------------------------------------------------------------------

# name: depth, encoder width and heads, decoder width and heads, exact parameters, the paper's millions
EPGS = {
    "S": (6, 768, 12, 768, 12, 115_531_776, 116),
    "B": (12, 768, 12, 768, 12, 228_911_616, 229),
    "L": (16, 1024, 16, 1024, 16, 540_215_040, 540),
    "XL": (12, 768, 12, 1584, 22, 582_986_064, 583),
    "XXL": (12, 768, 12, 1920, 16, 788_921_472, 789),
    "G": (12, 768, 12, 2688, 21, 1_391_899_008, 1391),
}
RCMS = {  # 106M in table 8 and 107M elsewhere in the paper
    "S": (6, 768, 12, 64_292_352, {64}),
    "B": (12, 768, 12, 106_805_760, {106, 107}),
    "L": (16, 1024, 16, 224_581_632, {225}),
}


def model_of(name: str, patch: int = 16) -> ModelConfig:
    depth, width, heads, decoder_width, decoder_heads, *_ = EPGS[name]
    return ModelConfig.model_validate(
        {
            "patch_size": patch,
            "num_classes": 1000,
            "encoder": {"depth": depth, "width": width, "heads": heads},
            "decoder": {"width": decoder_width, "heads": decoder_heads},
        }
    )


COSTS: dict[str, Cost] = {}


def cost_of(name: str) -> Cost:
    if name not in COSTS:
        COSTS[name] = epg_cost(model_of(name), DataConfig(image_size=256))
    return COSTS[name]


@pytest.mark.parametrize("name", EPGS)
def test_generator_parameters(name):
    *_, exact, millions = EPGS[name]
    assert cost_of(name).parameters == exact
    assert millions in (round(exact / 1e6), int(exact / 1e6))  # the paper truncates G


@pytest.mark.parametrize("name", RCMS)
def test_encoder_parameters(name):
    depth, width, heads, exact, millions = RCMS[name]
    model = model_of("S").model_copy(update={"encoder": {"depth": depth, "width": width, "heads": heads}})
    model = ModelConfig.model_validate(model.model_dump(warnings=False))
    assert rcm_parameters(model, DataConfig(image_size=256)) == exact
    assert {round(exact / 1e6), int(exact / 1e6)} & millions


@pytest.mark.parametrize(
    ("name", "paper", "with_attention"),
    [("XL", 127.5, 131.3), ("XXL", 175.9, 180.2), ("G", 320.5, 326.0), ("L", 113.0, 117.4)],
)
def test_multiply_adds(name, paper, with_attention):
    cost = cost_of(name)
    assert cost.macs / 1e9 == pytest.approx(paper, abs=0.05)
    assert cost.macs_with_attention / 1e9 == pytest.approx(with_attention, abs=0.05)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def forward_macs(network: nn.Module, *inputs: Tensor | None) -> tuple[int, int]:
    """Multiply-adds of one forward pass, without and with the attention's products."""
    linear, attention = 0, 0

    def count_linear(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal linear
        weight = module.weight
        assert isinstance(weight, Tensor)
        linear += output.numel() // len(weight) * weight.numel()

    def count_attention(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal attention
        n, tokens, width = args[0].shape
        attention += 2 * n * tokens * tokens * width

    hooks = [
        module.register_forward_hook(count_attention if isinstance(module, Attention) else count_linear)
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d | Attention)
    ]
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return linear, linear + attention


@pytest.mark.parametrize("changes", [{}, {"stem": 4}, {"num_classes": 0}, {"mlp_ratio": 3.0}, {"decoder_width": 12}])
def test_arithmetic_equals_the_built_network(changes):
    sizes = {"sample_size": 8, "patch_size": 2, "depth": 3, "encoder_width": 8, "encoder_heads": 2, "in_channels": 3}
    shape = NetworkShape(**sizes | {"decoder_width": 8, "decoder_heads": 2, "num_classes": 5} | changes)
    network = EPG(shape)
    labels = torch.zeros(1, dtype=torch.long) if shape.num_classes else None
    counted = forward_macs(network, torch.zeros(1, 3, 8, 8), torch.zeros(1), labels)
    assert generator_cost(shape) == Cost(parameters(network), *counted)


def test_arithmetic_equals_the_built_encoder():
    model, data = model_of("S").model_copy(update={"stem": 8}), DataConfig(image_size=32)
    with without_numbers():
        rcm = build_rcm(model, data)
    assert rcm_parameters(model, data) == parameters(rcm)
    assert all(p.is_meta for p in rcm.parameters())


def test_512_with_patch_32_has_as_many_tokens():
    with torch.device("meta"):
        assert build_epg(model_of("S", patch=32), DataConfig(image_size=512)).encoder.num_tokens == 258


# Generator ----------------------------------------------------------------------------------------------------------


def inputs_for(network: EPG, n: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    size = network.encoder.image_size
    return torch.randn(n, network.encoder.channels, size, size, generator=g), 250 * torch.randn(n, generator=g)


def test_fresh_network_outputs_exactly_zero():
    config = tiny_config()
    network = build_epg(config.model, config.data)
    x, c = inputs_for(network)
    assert not network(x, c, torch.tensor([0, 1, 2])).any()


def test_fresh_decoder_blocks_are_gated_shut():
    config = tiny_config()
    block = build_epg(config.model, config.data).decoder.blocks[0]
    x, skip, condition = torch.randn(2, 5, 24), torch.randn(2, 5, 16), torch.randn(2, 16)
    fused = block.skip_norm(block.skip_linear(torch.cat([x, skip], dim=-1)))
    assert torch.equal(block(x, skip, condition), fused)


def test_unpatchify_order():
    """(p1 p2 c): the channel runs fastest within a patch, then the column, then the row."""
    network = EPG(shape(sample_size=6))
    patches = torch.arange(2 * 9 * 12.0).view(2, 9, 12)
    image = network.decoder.unpatchify(patches)
    assert image.shape == (2, 3, 6, 6)
    for n in range(2):
        for y in range(6):
            for x in range(6):
                for c in range(3):
                    patch, within = y // 2 * 3 + x // 2, (y % 2 * 2 + x % 2) * 3 + c
                    assert image[n, c, y, x] == patches[n, patch, within]


@pytest.mark.parametrize("channels", [3, 8, 16])
@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
def test_patches_in_half_precision(channels: int, patch_size: int) -> None:
    """As a convolution in bf16 some of these are noise in torch 2.14 on a CPU with AMX, see docs/training.md."""
    embedding = PatchEmbedding(channels, 192, patch_size)
    x = torch.randn(4, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = embedding(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = embedding(x)
    assert relative(half.float(), exact) < 0.02


def test_patch_embedding_reads_patches_in_rows():
    encoder = Encoder(shape(sample_size=6, in_channels=1))
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 2:4, 4:6] = 1  # row 1, column 2 of the 3 x 3 patches
    changed = (encoder.patch_embedding(image) - encoder.patch_embedding(0 * image)).abs().sum(2)[0]
    assert changed.nonzero().flatten().tolist() == [5]


def test_skips_come_last_block_first():
    network = tiny_epg(tiny_config(model={"encoder": {"depth": 3}}))
    x, c = inputs_for(network)
    tokens, skips = network.encoder(x, c, network.embed_labels(None, 3))
    condition = sinusoidal_embedding(c, 16) + network.embed_labels(None, 3)
    h = network.decoder.from_encoder(tokens)
    for block, skip in zip(network.decoder.blocks, reversed(skips), strict=True):
        h = block(h, skip, condition)
    expected = network.decoder.unpatchify(network.decoder.out(network.decoder.norm(h)[:, 2:]))
    assert torch.allclose(network(x, c), expected, atol=1e-6)


def test_no_labels_are_the_null_class():
    network = tiny_epg()
    x, c = inputs_for(network)
    null = torch.full((3,), network.null_class)
    assert network.class_embedding is not None
    assert network.class_embedding.num_embeddings == 4
    assert network.null_class == 3
    assert torch.equal(network(x, c), network(x, c, null))
    assert not torch.allclose(network(x, c), network(x, c, torch.zeros_like(null)), atol=1e-3)


def test_class_reaches_cls_token_and_decoder():
    """With either path cut, the label still changes the output."""
    network = tiny_epg()
    x, c = inputs_for(network, 1)
    a, b = (network.embed_labels(torch.tensor([k]), 1) for k in (0, 1))
    assert not torch.allclose(network.encoder(x, c, a)[0], network.encoder(x, c, b)[0], atol=1e-3)
    tokens, skips = network.encoder(x, c)
    assert not torch.allclose(network.decoder(tokens, skips, a), network.decoder(tokens, skips, b), atol=1e-3)


def test_unconditional_model_refuses_labels():
    network = tiny_epg(tiny_config(model={"num_classes": 0}))
    x, c = inputs_for(network)
    assert network.class_embedding is None
    assert network(x, c).shape == x.shape
    with pytest.raises(ValueError, match="unconditional"):
        network(x, c, torch.tensor([0, 0, 0]))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize(("size", "patch"), [(6, 2), (10, 2), (5, 5), (9, 3)])
def test_any_channels_and_odd_grids(channels, size, patch):
    network = EPG(shape(sample_size=size, patch_size=patch, in_channels=channels, depth=2, num_classes=2))
    randomize(network)
    x, c = inputs_for(network)
    output = network(x, c, torch.tensor([0, 1, 2]))
    assert output.shape == x.shape
    assert output.std() > 0


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="image size 8 is not a multiple of the patch size 3"):
        shape(patch_size=3)
    with pytest.raises(ValueError, match="width 16 is not a multiple of the number of heads 3"):
        shape(encoder_heads=3)
    with pytest.raises(ValueError, match="width 20 is not a multiple of the number of heads 3"):
        shape(decoder_width=20)
    with pytest.raises(ValueError, match="2 gaussians are neither 0, 1, nor one more than 3 classes"):
        shape(num_classes=3, gaussians=2)


def test_samples_do_not_influence_each_other():
    network = tiny_epg()
    x, c = inputs_for(network, 4)
    labels = torch.tensor([0, 1, 2, 3])
    together = network(x, c, labels)
    for i in range(4):
        alone = network(x[i : i + 1], c[i : i + 1], labels[i : i + 1])
        assert torch.allclose(alone[0], together[i], rtol=1e-4, atol=1e-5)  # float32, other kernels for one sample
    x[1:] += 1
    assert torch.allclose(network(x, c, labels)[0], together[0], rtol=1e-4, atol=1e-5)


def test_dropout_masks():
    network = tiny_epg()
    x, c = inputs_for(network)
    shape = (3, network.encoder.num_tokens, network.decoder.width)
    ones = torch.ones(len(network.decoder.blocks), *shape)
    draws = Draws(0, 0, 0, 3, torch.device("cpu"))
    masks = torch.stack([2 * (draws.uniform(f"{i}", shape[1:]) < 0.5).float() for i in range(2)])
    assert torch.equal(network(x, c, None, ones), network(x, c))
    assert not torch.allclose(network(x, c, None, masks), network(x, c), atol=1e-3)
    assert torch.equal(network(x, c, None, masks), network(x, c, None, masks))


def test_initialisation_of_encoder():
    encoder = Encoder(shape(sample_size=32, encoder_width=64))
    assert encoder.position_embedding.shape == (1, 258, 64)
    assert encoder.position_embedding.std().item() == pytest.approx(0.02, rel=0.05)
    assert 0 < encoder.cls_token.abs().max() < 1e-5
    assert encoder.blocks[0].attention.qkv.bias is None


def test_projector_has_no_biases_and_no_last_norm():
    projector = Projector(8, hidden=16, out=4)
    assert all(m.bias is None for m in projector if isinstance(m, nn.Linear))
    assert isinstance(projector[-1], nn.Linear)
    assert [type(m).__name__ for m in projector] == [*["Linear", "BatchNorm", "ReLU"] * 2, "Linear"]


def test_mlp_ratio_reaches_encoder_and_decoder():
    config = tiny_config(model={"mlp_ratio": 2.0})
    network = build_epg(config.model, config.data)
    assert network.encoder.blocks[0].mlp.fc1.out_features == 32
    assert network.decoder.blocks[0].mlp.fc1.out_features == 48


def test_encode_is_the_cls_token():
    config = tiny_config("pretraining")
    rcm = build_rcm(config.model, config.data)
    assert isinstance(rcm, RCM)
    randomize(rcm)
    x = random_batch(config, 4).images.float() / 255
    c = torch.zeros(4)
    assert torch.equal(rcm.encode(x, c), rcm.encoder(x, c)[0][:, 0])


# Layers -------------------------------------------------------------------------------------------------------------


def test_sinusoidal_embedding_is_cos_then_sin():
    c = torch.tensor([0.0, 1.5, -300.0])
    embedding = sinusoidal_embedding(c, 8)
    frequencies = 10_000.0 ** (-torch.arange(4) / 4)
    angles = c[:, None] * frequencies
    assert torch.allclose(embedding, torch.cat([angles.cos(), angles.sin()], 1), atol=1e-4)  # of angles near 300
    assert embedding[0].tolist() == [1] * 4 + [0] * 4
    assert sinusoidal_embedding(c, 9).shape == (3, 9)
    assert not sinusoidal_embedding(c, 9)[:, 8].any()


@pytest.mark.parametrize("n", [2, 7])
def test_batch_norm_equals_torch(n):
    ours, theirs = BatchNorm(5), nn.BatchNorm1d(5)
    randomize(ours)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    theirs.load_state_dict(ours.state_dict())
    weight = torch.randn(n, 5)
    for step in range(3):
        x = torch.randn(n, 5, generator=torch.Generator().manual_seed(step)) * 3 + 1
        x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
        y1, y2 = ours(x1), theirs(x2)
        assert torch.allclose(y1, y2, atol=1e-5)
        ((y1**3 * weight).sum() + y1.sum()).backward()
        ((y2**3 * weight).sum() + y2.sum()).backward()
        assert torch.allclose(x1.grad, x2.grad, rtol=1e-3, atol=1e-4)  # n = 2 cancels strongly in float32
        assert torch.allclose(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
        assert torch.allclose(ours.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-4)
    for name, value in theirs.state_dict().items():
        assert torch.allclose(ours.state_dict()[name], value, rtol=1e-5), name
    assert torch.allclose(ours.eval()(x), theirs.eval()(x), atol=1e-5)


def test_batch_norm_in_eval_mode_changes_no_statistics():
    norm = BatchNorm(3).eval()
    before = copy.deepcopy(norm.state_dict())
    norm(torch.randn(4, 3) + 5)
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())


def test_batch_norm_needs_two_samples():
    with pytest.raises(ValueError, match="at least 2"):
        BatchNorm(3)(torch.randn(1, 3))


def test_attention_in_half_precision_is_differentiated_in_float32_on_a_cpu():
    """There torch's backward pass in half precision takes five times as long; without one half precision is faster."""
    attention, x = Attention(64, 2), torch.randn(3, 6, 64)

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if "scaled_dot_product" in func.name():
                dtypes.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    dtypes: list[torch.dtype] = []
    with Seen(), torch.autocast("cpu", torch.bfloat16):
        out = attention(x)
        with torch.no_grad():
            attention(x)
    assert dtypes == [torch.float32, torch.bfloat16]
    assert out.dtype == torch.bfloat16
    assert relative(out.float(), attention(x)) < 0.02


def test_layer_norm_computes_in_float32():
    norm = LayerNorm(64)
    randomize(norm)
    x = (torch.randn(8, 64) + 30).bfloat16()  # a mean that bfloat16 statistics would lose
    expected = F.layer_norm(x.float(), (64,), norm.weight, norm.bias, 1e-5)
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), expected.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), expected.bfloat16())
        assert torch.equal(norm(x.float()), expected)
    assert torch.equal(norm.bfloat16()(x).float(), norm.float()(x).float())


def test_layer_norm_keeps_float64():
    assert LayerNorm(4).double()(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64
