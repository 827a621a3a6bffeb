"""Faults that a run meets: in a step (F1), in the loss (F2), of processes (F3, F4), and none that add up (F5)."""

import math
import random
from pathlib import Path

from tests.reliability import inside, launched, leaks, spikes, workers
from tests.reliability.chains import state_hash
from tests.reliability.driver import Driver

from epg.training.spikes import SpikeDetector
from goals.figure import Figure, encoder, listed


def inside_a_step(count: int, folder: Path) -> list[Figure]:
    """F1: every kind of fault at every place of the forward pass, in one rank of one and of two processes."""
    figures = []
    driver = Driver()
    source = encoder(driver, folder)
    for stage in inside.PLACES:
        given = None if stage == "pretraining" else source
        cases = [
            (fault, processes, precision)
            for processes in (1, 2)
            for precision in ("fp32", "bf16", "fp16")
            for fault in inside.faults(stage, passes=3)
            if fault[1] in ("nan", "inf")
        ][:count]
        broken = [
            problem
            for i, (fault, processes, precision) in enumerate(cases)
            if (problem := inside.problem(driver, folder / f"{stage}-{i}", stage, fault, processes, given, precision))
        ]
        what = f"{stage}: {len(cases)} faults inside a step, 1 and 2 processes, three precisions: as without the step"
        figures.append(Figure("F1", what, listed(broken), not broken))
    fault = ("network.encoder.blocks.0", "nan", 0)
    found = inside.problem(driver, folder / "control", "diffusion", fault, 1, None, nan_to_num={})
    figures.append(Figure("F1", "control: nan_to_num on the gradient", found[:120], bool(found)))
    return figures


def spiking(trials: int, folder: Path) -> list[Figure]:
    """F2: spikes of the loss, a third of them in each stage; what caused them; and the batch left out."""
    figures = []
    driver = Driver()
    source, wanted = encoder(driver, folder), spikes.raised_steps(trials // 3)
    for stage in ("pretraining", "diffusion", "consistency"):
        given, place = None if stage == "pretraining" else source, folder / stage
        spikes.train(place, stage, trials // 3, given)
        spikes.train(place / "clean", stage, trials // 3, given, factor=1.0)
        found, clean = spikes.noticed(place, wanted), spikes.noticed(place / "clean", set())
        met = found.found >= 0.99 * found.raised and not found.alarms + clean.alarms
        figures.append(Figure("F2", f"{stage}: loss x 20", f"{found}; {clean} of another run", met))
        problem = spikes.rolled_back(driver, folder / f"{stage}-back", stage, 5, given)
        what = f"{stage}: rolled back and the batch left out, as without it"
        figures.append(Figure("F2", what, problem or "bit-identical", not problem))
    off = spikes.noticed(place, wanted, SpikeDetector(factor=math.inf))
    figures.append(Figure("F2", "control: threshold off", str(off), not off.found))
    chooser, each = random.Random(1), max(1, trials // 15)
    for kind, cause in {"data": "data", "loss": "machine", "bit": "machine"}.items():
        told = [spikes.told_apart(driver, folder / f"{kind}-{i}", kind, chooser) for i in range(each)]
        what = {"data": "a bad batch", "loss": "a loss wrong once", "bit": "a gradient's bit flipped once"}[kind]
        right = told.count(cause)
        figures.append(Figure("F2", what, f"{right} of {each} told to be the {cause}", right == each))
    told = [spikes.told_apart(driver, folder / "broken", "data", chooser, global_generator={})]
    figures.append(Figure("F2", "control: noise with a history, a bad batch", f"told: {told[0]}", told != ["data"]))
    return figures


def under_torchrun(count: int, folder: Path) -> list[Figure]:
    """F3: rank 1 of two dies or hangs."""
    assert launched.torchrun(folder / "undisturbed").code == 0
    wanted, figures = state_hash(folder / "undisturbed"), []
    for fault in list(launched.FAULTS)[:count]:
        found, seconds = launched.problem(folder / fault, fault, wanted)
        text = found or f"gone after {seconds:.0f} s, rank named, nothing left behind, restart bit-identical"
        figures.append(Figure("F3", f"torchrun, rank 1: {fault}", text, not found))
    return figures


def loaders(count: int, folder: Path) -> list[Figure]:
    """F4: a loader process dies or hangs."""
    driver = Driver()
    broken = [p for fault in workers.FAULTS[:count] if (p := workers.problem(driver, folder / fault, fault))]
    control = workers.problem(driver, folder / "control", "SIGSTOP", timeout=1e6)
    what = f"loader process: {', '.join(workers.FAULTS[:count])}"
    return [
        Figure("F4", what, f"{listed(broken)}; each named with its image", not broken),
        Figure("F4", "control: no timeout", "only the watchdog ends it", "ended with [71]" in control),
    ]


def leaking(steps: int, folder: Path) -> list[Figure]:
    """F5: memory, files, threads, disk over many steps."""
    resumes = max(2, steps // 1000)
    driver = Driver()
    found = leaks.measure(driver, folder / "run", steps, resumes)
    hoard = leaks.measure(driver, folder / "hoard", min(3000, steps), 2, hoard={})
    text = (
        f"{found.slope / 1e6:+.2f} MB per 1,000 steps, files +-{found.files}, threads +-{found.threads}, at most "
        f"{found.checkpoints} checkpoints, log {found.log:.0f} bytes per step"
    )
    return [
        Figure("F5", f"{steps:,} steps, {10 * resumes} saves, {resumes} starts", text, found.fine),
        Figure("F5", "control: losses kept", f"{hoard.slope / 1e6:+.2f} MB per 1,000 steps", hoard.slope > leaks.SLOPE),
    ]
