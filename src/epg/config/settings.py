"""Run configuration: typed, every unknown key an error, YAML in and out.

A *recipe* (`recipes/*.yaml` here, or a file of yours) describes data, networks and up to three stages; `run_config`
resolves it for one stage into a `RunConfig`, which is what a run folder records and what resuming compares. Types
and ranges are checked here, field by field, and all that is wrong is found at once; combinations in
`epg.config.validation`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from epg.config.complaints import Locate, complaints, nowhere
from epg.config.ranges import (
    Area,
    BlurSigma,
    Count,
    CountOrNone,
    Decay,
    LearningRate,
    Level,
    Levels,
    LogMean,
    LogStd,
    Number,
    PeakRate,
    Probability,
    Seconds,
    Seed,
    Strength,
    Temperature,
    Whole,
    Width,
    Zoom,
)
from epg.errors import UserError

Stage = Literal["pretraining", "diffusion", "consistency"]
STAGES: tuple[Stage, ...] = get_args(Stage)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


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


class MocoViewsConfig(Section):
    kind: Literal["moco_v3"] = "moco_v3"
    crop_scale: tuple[Area, Area] = (0.08, 1.0)
    """Area of the random crop relative to the image."""
    flip: Probability = 0.5
    jitter: tuple[Strength, Strength, Strength, Annotated[Number, Field(ge=0, le=0.5)]] = (0.4, 0.4, 0.2, 0.1)
    """Brightness, contrast, saturation, hue."""
    jitter_prob: Probability = 0.8
    gray: Probability = 0.2
    blur_sigma: tuple[BlurSigma, BlurSigma] = (0.1, 2.0)
    """In pixels."""
    blur_prob: tuple[Probability, Probability] = (1.0, 0.1)
    """Of the first and of the second view."""
    solarize_prob: tuple[Probability, Probability] = (0.0, 0.2)
    """Of the first and of the second view."""


class AffineViewsConfig(Section):
    kind: Literal["affine"] = "affine"
    degrees: Annotated[Number, Field(ge=0, le=180)] = 15.0
    translate: Probability = 0.1
    """Largest shift as a fraction of the side."""
    scale: tuple[Zoom, Zoom] = (0.85, 1.15)
    brightness: Strength = 0.2
    contrast: Strength = 0.2


class PretrainingConfig(Section):
    kind: Literal["pretraining"] = "pretraining"
    contrastive_temperature: Temperature = 0.2
    tau1: Temperature = 0.1
    """Temperature of the representation-consistency loss at sigma_min."""
    tau2: Temperature = 0.2
    """Its temperature at sigma_max when training starts; set to tau1 for the constant-temperature baseline."""
    momentum: Probability = 0.99
    """EMA decay of the momentum encoder, the target of the contrastive loss."""
    s0: Levels = 20
    s1: Levels = 1280
    """N(k) doubles from s0 to s1 over training."""
    flip: bool = True
    """Flip the plain image horizontally half of the time."""
    views: Annotated[MocoViewsConfig | AffineViewsConfig, Field(discriminator="kind")] = MocoViewsConfig()


class DiffusionConfig(Section):
    kind: Literal["diffusion"] = "diffusion"
    parameterization: Literal["x", "spectral"] = "x"
    """`x`: the network predicts the clean image. `spectral`: it corrects the best linear denoiser of the training
    images by frequency, weighted by what that leaves unknown; mean 0 and std 1.4 suit it."""
    spectrum: Literal["class", "global"] = "class"
    """Of `spectral`: statistics of every class (and of all images), or only of all images."""
    mean: LogMean = -1.2
    std: LogStd = 1.6
    """ln t ~ N(mean, std^2)."""
    levels: Annotated[Whole, Field(ge=2, le=10**6)] = 1280
    """The grid that drawn levels are rounded to."""
    label_dropout: Probability = 0.1
    """Probability of training a sample without its label, for guidance."""
    flip: bool = True
    """Flip images horizontally half of the time."""


class ConsistencyConfig(Section):
    kind: Literal["consistency"] = "consistency"
    mean: LogMean = -0.4
    std: LogStd = 1.6
    """ln t ~ N(mean, std^2)."""
    q: Annotated[Number, Field(gt=1, le=1e3)] = 2.0
    k: Annotated[Number, Field(ge=0, le=1e3)] = 8.0
    b: Annotated[Number, Field(ge=0, le=1e3)] = 1.0
    """r(t) = t (1 - (1 + k sigmoid(-b t)) / q^stage)."""
    delta: Annotated[Whole, Field(ge=1, le=1000)] = 1
    d: Count | None = None
    """stage = delta + step // d; none is a seventh of the steps, the paper's 100,000 of 700,000. The last stage is the
    one whose t - r the precision of training still resolves: 7 in bf16, 10 in fp16, 23 in fp32."""
    c: Annotated[Number, Field(ge=1e-6, le=1e3)] = 0.06
    """Softening constant of the distance."""
    auxiliary_weight: Annotated[Number, Field(ge=0, le=1e4)] = 1.0
    """Weight of the auxiliary loss from the frozen pre-trained encoder; 0 needs no encoder."""
    auxiliary_temperature: Temperature = 0.1
    dropout: Decay = 0.5
    """After the attention of each decoder block; online and target pass share the mask."""
    flip: bool = True
    """Flip images horizontally half of the time."""


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
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """Autocast; fp16 (the paper's mode) has a dynamic loss scale. Norms and losses are always float32. fp64 computes
    everything in float64, slowly: to compare two ways of computing the same to the last digits."""
    tf32: bool = True
    """TensorFloat-32 for what stays float32 on an NVIDIA GPU."""
    compile: bool = False
    """torch.compile every transformer block."""
    cuda_graphs: bool = False
    """torch.compile the whole network and replay it as CUDA graphs: faster on a GPU that waits for its next kernel, as
    with small networks. Not with fsdp, nor with micro-batches; on a CPU the compiled network alone."""
    activation_checkpointing: bool = False
    """Run each block again in the backward pass instead of keeping its activations: less memory, more time."""
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


class SamplingConfig(Section):
    sampler: Literal["heun", "euler", "edm_stochastic", "euler_ancestral", "one_step", "multistep"] = "heun"
    steps: Annotated[Whole, Field(ge=1, le=10_000)] = 32
    """Levels of the grid; the final step to 0 comes on top. Of multistep: evaluations."""
    levels: tuple[Level, ...] | None = None
    """Unshifted noise levels to take instead of the grid, falling; they decide the number of steps."""
    guidance: Annotated[Number, Field(ge=0, lt=1000)] = 1.0
    """Scale of classifier-free guidance; 1 is none."""
    interval: tuple[Level, Level] = (0.19, 1.61)
    """Unshifted levels (low, high] in which guidance acts."""


class EvaluationConfig(Section):
    every: CountOrNone = 0
    """Steps between evaluations while training, each with a checkpoint, the last step included; 0 is never."""
    linear_every: CountOrNone = 0
    """Steps between comparisons of a diffusion model's denoising error with the best linear denoiser's, on 512 held-out
    images: `linear/<noise level>` in the log, below 1 is better. The last step included; 0 is never."""
    count: Annotated[Whole, Field(ge=20, le=10**7)] = 1000
    """Samples drawn for each; images that an encoder of stage 1 is probed with."""
    features: list[str] = []
    """inception, efficientnet, classifier, encoder=RUN as for `epg evaluate`; none takes a classifier of the labels, or
    without labels the pre-trained encoder."""
    reference: str | None = None
    """A data set, a folder made by `epg reference`, or an .npz of ADM's; none is the training images."""
    metrics: list[str] = []
    """fid, sfid, is, fd, pr, dc, kid, mmd, accuracy; the usual ones of the features if empty."""
    best: str | None = None
    """Metric that marks the best checkpoint (best.json), which is then kept; none is FID or the Frechet distance."""


Objective = Annotated[PretrainingConfig | DiffusionConfig | ConsistencyConfig, Field(discriminator="kind")]


class RunConfig(Section):
    """One stage of one recipe, resolved: everything a run depends on."""

    recipe: str
    """Name of the recipe it came from."""
    seed: Seed = 0
    data: DataConfig
    model: ModelConfig
    noise: NoiseConfig = NoiseConfig()
    objective: Objective
    optimizer: OptimizerConfig
    training: TrainingConfig
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def stage(self) -> Stage:
        return self.objective.kind

    @property
    def weights(self) -> str:
        """Those that sample and are exported: the first average (of fixed decay, if there is one), else the trained."""
        averages = [f"ema-{decay}" for decay in self.training.ema]
        averages += [f"power-{width}" for width in self.training.power_ema]
        return averages[0] if averages else "model"

    @property
    def shift(self) -> float:
        """Factor between unshifted and shifted levels."""
        return self.data.image_size / 64 if self.noise.shift is None else self.noise.shift

    @property
    def parameterization(self) -> Literal["x", "edm", "spectral"]:
        """What the network's output means, see `epg.denoiser`."""
        return self.objective.parameterization if isinstance(self.objective, DiffusionConfig) else "edm"

    @property
    def gaussians(self) -> int:
        """Of the network's `spectrum`: one for each class and one for all images, that one alone, or none."""
        if not isinstance(self.objective, DiffusionConfig) or self.objective.parameterization != "spectral":
            return 0
        return 1 + (self.model.num_classes or 0) * (self.objective.spectrum == "class")

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse(content: Mapping[str, Any], where: str, locate: Locate = nowhere) -> RunConfig:
    """A RunConfig from plain data; all that is wrong is listed in one message. Raises UserError.

    `locate` says on which line of a file a setting stands.
    """
    if wrong := complaints_of(content, locate):
        raise UserError(f"{where}: {len(wrong)} wrong settings:\n" + "\n".join(wrong))
    return RunConfig.model_validate(content)


def complaints_of(content: Mapping[str, Any], locate: Locate = nowhere, complete: bool = True) -> list[str]:
    """A line for each unknown key, wrong type, number out of range and, if it is to be `complete`, missing setting."""
    try:
        RunConfig.model_validate(content)
    except ValidationError as error:
        return complaints(error, RunConfig, locate, missing=complete)
    return []
