"""What a log line says: losses by noise level, collapse gauge, schedules, rates, FLOPs, loss spikes."""

import math
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from epg import schedule
from epg.checkpoint import checkpoint
from epg.config.objectives import Stage
from epg.config.recipe import merge, run_config
from epg.config.settings import RunConfig, parse
from epg.cost.devices import known_peak
from epg.cost.training import training_flops
from epg.networks.build import build_encoder, build_epg
from epg.objectives.base import Losses, Objective
from epg.objectives.consistency import Consistency
from epg.objectives.diagnostics import by_quarter, feature_std, quarter
from epg.runs import build_objective, prepare_run, train
from epg.training.meter import Meter, Speed, means
from epg.training.optim import learning_rate
from epg.training.spikes import LossSpikeWarning, Spike, SpikeDetector
from epg.training.throughput import measured_peak, peak_memory
from epg.training.tracking import read_log
from tests import started
from tests.helpers import change_losses, random_batch, randomize, tiny_config

STAGES: tuple[Stage, ...] = ("pretraining", "diffusion", "consistency")
CPU = torch.device("cpu")


def tiny(stage: Stage, **changes: object) -> RunConfig:
    """A run on the digits, logged at every second step."""
    small = {
        "model": {
            "encoder": {"depth": 2, "width": 16, "heads": 2},
            "decoder": {"width": 24, "heads": 2},
            "projector_hidden": 16,
            "projector_out": 8,
        },
        "training": {
            "batch_size": 32,
            "steps": 6,
            "log_every": 2,
            "preview_every": 0,
            "checkpoint_every": 1000,
            "trackers": [],
        },
    }
    return parse(merge(merge(run_config("digits", stage).model_dump(), small), changes), "test")


# Losses by noise level ----------------------------------------------------------------------------------------------


def test_quarters_are_those_of_the_lognormal_density() -> None:
    unit = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    sigma = schedule.lognormal(unit, -1.2, 1.6)
    cdf = [statistics.NormalDist(-1.2, 1.6).cdf(math.log(s)) for s in sigma.tolist()]
    assert quarter(unit).tolist() == [int(4 * p) for p in cdf]
    assert torch.bincount(quarter(unit)).min() > 200


def test_means_of_quarters_are_exact_over_uneven_micro_batches() -> None:
    """Averaging over micro-batches and steps, then dividing by the share, equals the mean over all samples."""
    generator = torch.Generator().manual_seed(1)
    meter, values, quarters = Meter(), [], []
    for step in range(3):
        terms: dict[str, torch.Tensor] = {}
        for _ in range(2):
            v, q = torch.rand(8, generator=generator) ** 4, torch.randint(3, (8,), generator=generator)
            values, quarters = [*values, v], [*quarters, q]
            for name, value in by_quarter("term", v, q).items():
                terms[name] = terms.get(name, torch.zeros(())) + value / 2
        meter.add(step, terms, waited=0.0)
    found, v, q = means(meter.history()), torch.cat(values), torch.cat(quarters)
    assert found.keys() == {"term/q1", "term/q2", "term/q3"}  # nothing fell into the fourth
    for i in range(3):
        assert found[f"term/q{i + 1}"] == pytest.approx(float(v[q == i].mean()), rel=1e-5)


def test_a_sample_that_is_not_finite_spoils_its_own_quarter_only() -> None:
    terms = by_quarter("term", torch.tensor([1.0, math.nan]), torch.tensor([0, 2]))
    assert float(terms["term/q1"]) == 0.5
    assert math.isnan(float(terms["term/q3"]))


def test_skipped_steps_do_not_count() -> None:
    meter = Meter()
    meter.add(0, {"loss": torch.tensor(2.0)}, waited=0.0)
    meter.add(1, {}, waited=0.0)
    meter.add(2, {"loss": torch.tensor(4.0)}, waited=0.0)
    assert means(meter.history()) == {"loss": 3.0}
    assert meter.steps == [0, 2]
    assert meter.count == 3  # they took their time all the same


# Collapse gauge -----------------------------------------------------------------------------------------------------


def test_feature_std_is_one_for_spread_and_zero_for_collapsed_features() -> None:
    spread = torch.randn(4096, 64, generator=torch.Generator().manual_seed(0))
    assert float(feature_std(spread)) == pytest.approx(1, abs=0.02)
    assert float(feature_std(spread[:1].expand(100, -1))) == pytest.approx(0, abs=1e-6)
    # Two opposite points on one axis: that channel's deviation is sqrt(N / (N - 1)), the others' 0.
    axis = torch.zeros(10, 16)
    axis[:, 0] = torch.tensor([5.0, -3.0]).repeat(5)
    assert float(feature_std(axis)) == pytest.approx(math.sqrt(10 / 9) / math.sqrt(16))


def test_gauge_sees_a_collapsed_encoder() -> None:
    config = tiny_config("pretraining")
    objective = build_objective(config)
    randomize(objective)
    healthy = objective.diagnostics(random_batch(config), 0)
    assert len(healthy) == 3
    assert all(float(value) > 0.05 for value in healthy.values())
    norm = objective.network.get_submodule("encoder.norm")
    torch.nn.init.zeros_(norm.get_parameter("weight"))  # every image now has the feature that is the norm's bias
    assert all(float(value) < 1e-5 for value in objective.diagnostics(random_batch(config), 0).values())


# FLOPs, peaks, memory -----------------------------------------------------------------------------------------------


def objective_with_encoder(config: RunConfig) -> Objective:
    if config.stage == "consistency":
        return Consistency(build_epg(config.model, config.data), config, build_encoder(config.model, config.data))
    return build_objective(config)


@pytest.mark.parametrize("stage", STAGES)
def test_training_flops_are_what_torch_counts(stage: Stage) -> None:
    """Against torch's own counter on a real step; it leaves out the gradient by the images, which nobody needs."""
    config = tiny_config(stage, model={"encoder": {"depth": 3, "width": 32}, "decoder": {"width": 48}})
    objective = objective_with_encoder(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        objective(objective.draw(random_batch(config), 0))["loss"].backward()
    batch, data, width = config.training.batch_size, config.data, config.model.encoder.width
    patch_embedding = 2 * width * data.channels * data.image_size**2
    without_gradient = {"pretraining": 3, "diffusion": 1, "consistency": 1}[stage] * patch_embedding
    expected = counter.get_total_flops() / batch + without_gradient
    # NT-Xent's similarities are counted by torch and not by us.
    assert training_flops(config) == pytest.approx(expected, rel=0.02)
    assert training_flops(config) <= expected * (1 + 1e-9)


def test_flops_of_the_paper_s_models() -> None:
    """Three passes of table 1's GFLOPs (with attention) for diffusion, in FLOPs rather than multiply-adds."""
    config = run_config("imagenet256-xl", "diffusion")
    assert training_flops(config) == pytest.approx(6 * 131.3e9, rel=0.01)


@pytest.mark.parametrize(
    ("device", "teraflops"),
    [
        ("NVIDIA H200", 989.4),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GeForce RTX 4090 D", 165.2),
    ],
)
def test_known_peaks(device: str, teraflops: float | None) -> None:
    assert known_peak(device) == (None if teraflops is None else teraflops * 1e12)


def test_measured_peak_is_at_least_that_of_a_matrix_product() -> None:
    peak = measured_peak(CPU, torch.float32)
    a = torch.ones(512, 512)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        a @ a
        seconds.append(time.perf_counter() - started)
    assert 0.2 * 2 * 512**3 / min(seconds) < peak < 1e15  # 0.2: other processes share this machine


def test_peak_memory_sees_an_allocation() -> None:
    started.call(_allocate)  # where little was needed before


def _allocate() -> None:
    before = peak_memory(CPU)
    torch.ones(int((before + 0.1) * 2**30), dtype=torch.uint8)  # larger than everything so far
    assert 0.1 <= peak_memory(CPU) - before < before + 1


# Loss spikes --------------------------------------------------------------------------------------------------------


def lognormal(scale: float) -> Callable[[random.Random, int], float]:
    return lambda r, step: math.exp(r.gauss(0, scale))


def falling(r: random.Random, step: int) -> float:
    """A loss that falls by a factor of 100, fast at first."""
    return (0.05 + 5 / (1 + step / 50)) * math.exp(r.gauss(0, 0.2))


def heavy_tailed(r: random.Random, step: int) -> float:
    """Multiplicative noise with the tails of Student's t with eight degrees of freedom."""
    return math.exp(0.1 * r.gauss(0, 1) / math.sqrt(r.gammavariate(4, 2) / 8))


def one_level_per_step(r: random.Random, step: int) -> float:
    """As representation consistency: one noise level per step, from almost nothing to the logarithm of the batch."""
    return 5 / (1 + math.exp(-r.uniform(-6, 4)))


NOISE = [lognormal(0.05), lognormal(0.2), lognormal(0.3), falling, heavy_tailed, one_level_per_step]


def test_at_most_one_false_alarm_in_100_000_clean_steps() -> None:
    r = random.Random(0)
    alarms: list[Spike] = []
    for noise in NOISE:
        detector = SpikeDetector()
        for step in range(100_000 // len(NOISE) + 1):
            alarms += detector.check(step, {"loss": noise(r, step)})
    assert len(alarms) <= 1


@pytest.mark.parametrize("noise", [lognormal(0.05), lognormal(0.2), lognormal(0.3), falling, heavy_tailed])
def test_spikes_of_twenty_times_are_found(noise: Callable[[random.Random, int], float]) -> None:
    r = random.Random(1)
    detector, found, trials = SpikeDetector(), set(), 1000
    for step in range(40, 40 * (trials + 1)):
        value = noise(r, step) * (20 if step % 40 == 0 and step > 40 else 1)
        found |= {spike.step for spike in detector.check(step, {"loss": value})}
    expected = set(range(80, 40 * (trials + 1), 40))
    assert len(found & expected) >= 0.99 * len(expected)
    assert len(found - expected) <= 1


def test_a_loss_that_stays_high_is_reported_once() -> None:
    r = random.Random(2)
    detector, steps = SpikeDetector(), []
    for step in range(400):
        value = math.exp(r.gauss(0, 0.1)) * (20 if step >= 200 else 1)
        steps += [spike.step for spike in detector.check(step, {"loss": value})]
    assert steps == [200]


def test_loop_names_step_and_term_of_a_spike(tmp_path: Path) -> None:
    run = prepare_run(tiny("consistency", training={"steps": 60, "log_every": 20}), tmp_path)

    def spiked(step: int, losses: Losses) -> Losses:
        factor = 400 if step == 47 else 1  # a loss of the first steps varies by its own factor of ten
        return {name: value * factor if name in ("loss", "consistency") else value for name, value in losses.items()}

    change_losses(run.trainer.objective, spiked)
    with pytest.warns(LossSpikeWarning, match=r"^step 47: (loss|consistency) .* times its median.*consistency"):
        run.trainer.run()
    lines = read_log(tmp_path)
    assert [line["spikes"] for line in lines] == [0, 0, 1]
    assert lines[2]["spike_step"] == 47
    assert lines[2]["spike_ratio"] > 20


# Log lines ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    train(tiny("pretraining", training={"steps": 2}), folder)
    return folder


OWN: dict[Stage, set[str]] = {
    "pretraining": {"contrastive", "tau2", "num_levels", "feature_std/0.002", "feature_std/0.5", "feature_std/5"},
    "diffusion": {"denoising", *(f"denoising/q{i}" for i in range(1, 5))},
    "consistency": {"consistency", "auxiliary", "stage", *(f"consistency/q{i}" for i in range(1, 5))},
}
EVERY = {"step", "loss", "grad_norm", "lr", "skipped", "spikes", "images_per_second", "mfu", "data_wait"}
EVERY |= {"peak_memory_gib", "eta_seconds", "cpu_seconds"}


@pytest.mark.parametrize("stage", STAGES)
def test_every_log_line_has_its_numbers(stage: Stage, tmp_path: Path, encoder: Path) -> None:
    config = tiny(stage)
    train(config, tmp_path, encoder=encoder if stage != "pretraining" else None)
    lines = read_log(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    for line in lines:
        quarters = {name for name in line if "/q" in name}
        expected = EVERY | OWN[stage] | ({"consistency"} if stage == "pretraining" else set())
        assert line.keys() - quarters == {name for name in expected if "/q" not in name}
        assert quarters  # which ones have samples is chance
        last = int(line["step"]) - 1  # numbers of schedules are those the last step ran with
        assert line["lr"] == learning_rate(last, 6, config.optimizer, 32)
        assert line["mfu"] > 0
        assert 0 <= line["data_wait"] <= 1
        assert line["cpu_seconds"] > 0
        if stage == "pretraining":
            assert line["tau2"] == schedule.tau2(last, 6)
            assert line["num_levels"] == schedule.num_levels(last, 6)
    assert lines[-1]["eta_seconds"] == 0
    assert lines[0]["eta_seconds"] > 0
    if stage != "pretraining":
        assert set().union(*lines) >= OWN[stage]


def test_a_peak_measured_too_low_is_raised(tmp_path: Path) -> None:
    config = prepare_run(tiny("diffusion", training={"batch_size": 8, "steps": 10}), tmp_path).config
    speed = Speed(config, CPU, 0)
    speed.ideal = 1.0  # second per image
    fast, slow = (SimpleNamespace(count=5, elapsed=seconds) for seconds in (10.0, 20.0))  # 4 and 2 images per second
    assert speed.numbers(fast, 5)["mfu"] == 1
    assert speed.numbers(slow, 5)["mfu"] == 0.5


def test_mfu_is_flops_over_peak(tmp_path: Path) -> None:
    config = tiny("diffusion")
    run = train(config, tmp_path)
    line = read_log(tmp_path)[-1]
    expected = line["images_per_second"] * training_flops(run.config) / measured_peak(CPU, torch.float32)
    assert line["mfu"] == pytest.approx(expected)


def test_consistency_logs_its_stage(tmp_path: Path) -> None:
    train(tiny("consistency", objective={"d": 3}), tmp_path)
    assert [line["stage"] for line in read_log(tmp_path)] == [1, 2, 2]


def test_logging_changes_no_weight(tmp_path: Path) -> None:
    """Diagnostics run forward passes between the steps; the weights stay what they were, bit for bit."""
    train(tiny("pretraining", training={"log_every": 1}), tmp_path / "often")
    train(tiny("pretraining", training={"log_every": 100}), tmp_path / "never")
    often, never = (checkpoint.find(tmp_path / name).tensors("model") for name in ("often", "never"))
    assert often.keys() == never.keys()
    assert all(torch.equal(often[name], never[name]) for name in often)


TIMES = {"images_per_second", "mfu", "data_wait", "peak_memory_gib", "eta_seconds", "cpu_seconds"}
TOGETHER: tuple[Stage, ...] = ("pretraining", "diffusion")


def _train_together(folder: str) -> None:
    dist.init_process_group("gloo")
    for stage in TOGETHER:
        train(tiny(stage), Path(folder) / f"two-{stage}")


def test_two_processes_log_the_numbers_of_one(tmp_path: Path) -> None:
    started.call(_train_together, tmp_path, processes=2)
    for stage in TOGETHER:
        train(tiny(stage), tmp_path / f"one-{stage}")
        for one, two in zip(read_log(tmp_path / f"one-{stage}"), read_log(tmp_path / f"two-{stage}"), strict=True):
            assert one.keys() == two.keys()
            for name in one.keys() - TIMES:
                assert two[name] == pytest.approx(one[name], rel=1e-3), name


def test_a_clean_run_raises_no_spike_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LossSpikeWarning)
        train(tiny("diffusion", training={"steps": 120, "log_every": 20}), tmp_path)
