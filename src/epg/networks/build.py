"""Networks from a configuration."""

from epg.config.sections import DataConfig, ModelConfig
from epg.networks.decoder import EPG
from epg.networks.encoder import RCM, Encoder, Projector


def build_encoder(model: ModelConfig, data: DataConfig) -> Encoder:
    return Encoder(
        image_size=data.image_size,
        patch_size=model.patch_size,
        channels=data.channels,
        depth=model.encoder.depth,
        width=model.encoder.width,
        heads=model.encoder.heads,
        mlp_ratio=model.mlp_ratio,
        stem=model.stem,
    )


def build_rcm(model: ModelConfig, data: DataConfig) -> RCM:
    """Encoder and projector of stage 1."""
    return RCM(build_encoder(model, data), Projector(model.encoder.width, model.projector_hidden, model.projector_out))


def build_epg(model: ModelConfig, data: DataConfig, gaussians: int = 0) -> EPG:
    """Encoder and decoder of stage 2; `model.num_classes` must be a number. `gaussians`: those of its `spectrum`."""
    assert model.num_classes is not None, "the number of classes is resolved from the data first"
    return EPG(
        build_encoder(model, data),
        decoder_width=model.decoder.width,
        decoder_heads=model.decoder.heads,
        num_classes=model.num_classes,
        mlp_ratio=model.mlp_ratio,
        gaussians=gaussians,
    )
