"""The sections of a configuration that every run has: data, networks, noise, optimizer, training, sampling, evaluation.

Types and ranges are checked here, field by field, so that all that is wrong is found at once; those of the objective
are in `epg.config.objectives`, combinations in `epg.config.validation`.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from epg.config.ranges import (
    Count,
    CountOrNone,
    Decay,
    LearningRate,
    Level,
    Number,
    PeakRate,
    Seconds,
    Whole,
    Width,
)
from epg.samplers import SAMPLERS


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def kinds(cls) -> "Iterable[type[Section]]":
        """The sections that a setting of this type can hold: it alone, unless it says otherwise."""
        return [cls]


class DataConfig(Section):
    source: str = "digits"
    """`digits` (built in), a set made by `epg prepare`, or anything that `epg prepare` takes: a folder, an archive, a
    table, arrays, a Hub name."""
    image_size: Annotated[Whole, Field(ge=1, le=8192)]
    """Side of the square training images in pixels; larger images are centre-cropped (ADM)."""
    channels: Literal[1, 3] = 3
    """1 (grey) or 3 (colour)."""
    normalization: Literal["imagenet", "symmetric"] = "imagenet"
    """`imagenet`: (x - mean) / (2 std) with ImageNet's mean and std; `symmetric`: [-1, 1]."""
    labels: Literal["auto", "folder", "column", "none"] = "auto"
    """Where labels come from: class folders, a column of a table or label file, nowhere; auto finds out."""
    image_column: str | None = None
    """Column of a table (array of an .npz, member of a WebDataset sample) that holds the images; found by itself."""
    label_column: str | None = None
    """Column (array) that holds the labels; found by itself when there is one that looks like them."""
    label_file: str | None = None
    """File within the source that names images and labels, such as labels.csv; metadata.csv is found by itself."""
    background: str = "white"
    """Colour behind transparent pixels; `none` ignores transparency (a fourth band of other data)."""
    range: tuple[Number, Number] | None = None
    """Which values of more than 8 bits are black and white, such as 0 4095; none takes all that the format has."""
    resize: Literal["adm", "exact"] = "adm"
    """`adm` rounds after every halving, as ADM, which brightens a little; `exact` rounds once."""
    balanced: bool = False
    """Visit every class equally often, repeating images of small ones."""
    per_class: Count | None = None
    """Use only the first so many images of every class."""
    fraction: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """Use only this part of every class, the same images in every run; a smaller part lies in a larger one."""
    workers: Annotated[Whole, Field(ge=0, le=1024)] = 4
    """Loader processes; small sets are decoded once into memory and need none."""
    timeout: Annotated[Number, Field(ge=0.01, le=10**9)] = 120.0
    """Seconds that reading one image may take a loader process before the run ends; slow storage needs more."""
    max_damaged: CountOrNone = 0
    """Damaged images after which training stops; up to there each is replaced by another, counted and named. 0 stops
    at the first."""


class EncoderConfig(Section):
    depth: Annotated[Whole, Field(ge=1, le=1000)]
    width: Width
    heads: Width


class DecoderConfig(Section):
    width: Width
    heads: Width


class ModelConfig(Section):
    patch_size: Annotated[Whole, Field(ge=1, le=8192)]
    """Side of a patch in pixels; the image size must be a multiple of it."""
    num_classes: Annotated[Whole, Field(ge=0, le=10**6)] | None = None
    """Number of classes; 0 builds an unconditional model; none takes the number from the data."""
    encoder: EncoderConfig
    """The ViT encoder, shared by both stages."""
    decoder: DecoderConfig
    """The decoder; it has as many blocks as the encoder."""
    mlp_ratio: Annotated[Number, Field(gt=0, le=64)] = 4.0
    stem: Annotated[Whole, Field(ge=0, le=1024)] = 0
    """Channels of a thin convolutional stem before the patches, and of a head after them, which sees the stem's
    output too; 0 is the paper's network, which has neither."""
    projector_hidden: Width = 4096
    projector_out: Width = 256


class NoiseConfig(Section):
    sigma_min: Annotated[Number, Field(ge=1e-6, le=1e5)] = 0.002
    sigma_max: Annotated[Number, Field(ge=1e-6, le=1e5)] = 80.0
    rho: Annotated[Number, Field(ge=0.5, le=100)] = 7.0
    sigma_data: Annotated[Number, Field(ge=1e-3, le=1e3)] = 0.5
    shift: Annotated[Number, Field(ge=1e-3, le=1e3)] | None = None
    """Factor on every level that touches an image; none is image_size / 64. Images below 32 pixels want 1."""
    scale: Annotated[Number, Field(ge=1e-3, le=1e3)] = 1.0
    """Of the noise at time 1 of flow matching, in network units: level s has the time s / (s + scale). Only what is
    stated in such times asks for it: `uniform_t` and the weighting `v`."""


class OptimizerConfig(Section):
    kind: Literal["adamw", "muon"] = "adamw"
    """`muon`: Muon for the matrices of the transformer blocks, AdamW for everything else."""
    lr: PeakRate
    """Peak learning rate."""
    muon_lr: PeakRate = 0.02
    """Peak learning rate of Muon; it follows the same schedule, in proportion to `lr`."""
    lr_batch_size: Annotated[Whole, Field(ge=1, le=10**7)] | None = None
    """Batch size at which `lr` is stated: the rate used is scaled linearly to `training.batch_size`. None: as is."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: Annotated[Number, Field(ge=0, le=10)] = 0.01
    """Not applied to the position embedding and the CLS token."""
    warmup_steps: CountOrNone = 10_000
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: cosine to 0 at the last step, or constant."""
    lr_steps: list[tuple[CountOrNone, LearningRate]] = []
    """(step, lr) pairs: from that step on the peak rate is `lr`."""
    clip: Annotated[Number, Field(gt=0, le=10**12)] | None = None
    """Largest gradient norm; none does not clip."""
    frozen_encoder: bool = False
    """Of a generator: the encoder stays as it begins, only the rest is trained."""
    layer_decay: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """The rate of the encoder's last block relative to `lr`, and of each earlier block to the next one's; patch and
    position embedding count as a block before the first. 1 is one rate for all."""


class TrainingConfig(Section):
    batch_size: Annotated[Whole, Field(ge=1, le=10**7)]
    """Images per step, over all processes and micro-batches."""
    micro_batch: Annotated[Whole, Field(ge=1, le=10**7)] | None = None
    """Images per forward pass of one process; none is batch_size / processes."""
    steps: Count
    ema: list[Decay] = [0.9999]
    """EMA decays kept of the network; the first is the one that samples. In a run of fewer than 10 / (1 - decay) steps
    the average is warmed up: it spans about the last ninth of the steps so far."""
    power_ema: list[Annotated[Number, Field(ge=1e-3, lt=0.28)]] = []
    """Relative widths (0.05, 0.1) of power-function EMAs kept for post-hoc synthesis; see `epg ema`."""
    precision: Literal["auto", "fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Autocast; `auto` is bf16 where the device multiplies it in hardware and fp32 elsewhere, decided when a run begins
    and kept when it is continued, wherever that is. fp16 (the paper's mode) has a dynamic loss scale. Norms and losses
    are always float32. fp64 computes everything in float64, slowly: to compare two ways of computing the same to the
    last digits."""
    tf32: bool = True
    """TensorFloat-32 for what stays float32 on an NVIDIA GPU."""
    compile: bool = False
    """torch.compile every transformer block and, on an accelerator, what is drawn: random numbers and views."""
    cuda_graphs: bool = False
    """torch.compile the whole network and replay it as CUDA graphs: faster on a GPU that waits for its next kernel, as
    with small networks. Not with fsdp, nor with micro-batches; on a CPU the compiled network alone."""
    activation_checkpointing: bool = False
    """Run each block again in the backward pass instead of keeping its activations: less memory, more time."""
    keep_products: bool = False
    """Of activation checkpointing: keep what matrix products and attention give, and compute only the rest again."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """Several processes: a copy each (ddp), or weights, averages and optimizer state in shards (FSDP2)."""
    max_nonfinite: Count = 3
    """Steps with a non-finite gradient that end the run when they come in a row; fewer are skipped and counted."""
    leave_out: list[CountOrNone] = []
    """Steps, counted from 0 as warnings name them, whose batch is read and not learnt from."""
    timeout: Seconds = 600.0
    """Seconds without a sign of life (a step, a pass of the network for samples, a write that gets on) after which a
    hanging process ends itself; 0 is never."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    log_every: Count = 50
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = ["tensorboard"]
    """Where numbers and sample grids go besides log.jsonl; wandb and trackio are extras to install."""
    preview_every: CountOrNone = 5_000
    """Steps between sample grids, each with a checkpoint, the last step included; 0 is never."""
    checkpoint_every: Count = 5_000
    keep: Annotated[Whole, Field(ge=2, le=10**12)] = 2
    """Newest checkpoints kept, at least 2; only those that verify count."""
    keep_every: CountOrNone = 0
    """Also keep every checkpoint whose step is a multiple of this; 0 is none."""


def known_sampler(name: str) -> str:
    if name not in SAMPLERS:
        told = {"name": name[:40], "names": ", ".join(SAMPLERS)}
        raise PydanticCustomError("sampler", "there is no {name}; choose one of {names}", told)
    return name


class SamplingConfig(Section):
    sampler: Annotated[str, AfterValidator(known_sampler), Field(description=f"One of {', '.join(SAMPLERS)}.")] = "heun"
    steps: Annotated[Whole, Field(ge=1, le=10_000)] = 32
    """Levels of the grid; the final step to 0 comes on top. Of multistep: evaluations."""
    grid: Literal["karras", "uniform_t"] = "karras"
    """Where the levels lie: eq. 10, or evenly in the time of flow matching."""
    levels: tuple[Level, ...] | None = None
    """Unshifted noise levels to take instead of the grid, falling; they decide the number of steps."""
    guide: Literal["unconditional", "internal"] = "unconditional"
    """What guides: the model without the label (classifier-free guidance), or the head on its encoder, of a model that
    was trained with one (`objective.internal_weight`)."""
    guidance: Annotated[Number, Field(ge=0, lt=1000)] = 1.0
    """Scale of guidance; 1 is none."""
    interval: tuple[Level, Level] = (0.19, 1.61)
    """Unshifted levels (low, high] in which guidance acts."""


class EvaluationConfig(Section):
    every: CountOrNone | None = None
    """Steps between evaluations while training, each with a checkpoint, the last step included; 0 is never. None is a
    tenth of the steps for onestep, whose loss is a distance between features and so judges nothing, else never."""
    linear_every: CountOrNone = 0
    """Steps between comparisons of a diffusion model's denoising error with the best linear denoiser's, on 512 held-out
    images: `linear/<noise level>` in the log, below 1 is better. The last step included; 0 is never."""
    count: Annotated[Whole, Field(ge=20, le=10**7)] = 1000
    """Samples drawn for each; images that an encoder of stage 1 is probed with."""
    features: list[str] = []
    """inception, efficientnet, classifier, encoder=RUN, random... as for `epg evaluate`; none takes a classifier of the
    labels, or without labels the pre-trained encoder; random, if that is what the loss compares images in."""
    reference: str | None = None
    """A data set, a folder made by `epg reference`, or an .npz of ADM's; none is the training images."""
    metrics: list[str] = []
    """fid, sfid, is, fd, fdr, pr, dc, kid, mmd, accuracy; the usual ones of the features if empty."""
    best: str | None = None
    """Metric that marks the best checkpoint (best.json), which is then kept; none is FDr, FID or the Frechet distance,
    in features that the loss does not compare."""
