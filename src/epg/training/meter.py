"""The numbers of a log line."""

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from epg.config.settings import RunConfig
from epg.cost.training import training_flops
from epg.distributed import all_reduce_sum, world_size
from epg.networks.layers import full_precision
from epg.objectives.diagnostics import SHARE
from epg.training.throughput import peak_flops


@dataclass
class Meter:
    """Collects what every step gives, without waiting for the device, and reads it once per log line."""

    rows: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)
    """Step and losses; those of a skipped step are empty by the time that they are read."""
    count: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    cpu_started: float = field(default_factory=time.process_time)

    def add(self, step: int, losses: dict[str, Tensor], waited: float) -> None:
        """Adds the losses of a step (none if it was skipped) and the seconds waited for its data."""
        self.count += 1
        self.waited += waited
        self.rows.append((step, losses))

    @property
    def steps(self) -> list[int]:
        """The steps that gave numbers: skipped ones do not."""
        return [step for step, losses in self.rows if losses]

    def history(self) -> dict[str, list[float]]:
        """Every number of every step, averaged over processes: one collective and one copy from the device."""
        rows = [losses for _, losses in self.rows if losses]
        if not rows:
            return {}
        table = torch.stack([full_precision(value.detach()) for row in rows for value in row.values()])
        values = (all_reduce_sum(table) / world_size()).tolist()
        return {name: values[i :: len(rows[0])] for i, name in enumerate(rows[0])}

    @property
    def elapsed(self) -> float:
        """Seconds since the last log line; read after `history`, which waits for the device."""
        return time.perf_counter() - self.started

    def cpu_seconds(self) -> float:
        """CPU time since the last log line, of all threads of all processes; not of the loader's workers."""
        return float(all_reduce_sum(torch.tensor(time.process_time() - self.cpu_started, dtype=torch.float64)))


def means(history: dict[str, list[float]]) -> dict[str, float]:
    """Mean of every number over the steps; where it comes with a share, the mean over that share (none if empty)."""
    average = {name: sum(values) / len(values) for name, values in history.items()}
    return {
        name: value / average.get(name + SHARE, 1.0)
        for name, value in average.items()
        if not name.endswith(SHARE) and average.get(name + SHARE, 1.0) > 0
    }


class Speed:
    """Rates of a run: images per second, MFU, and the time that is left."""

    def __init__(self, config: RunConfig, device: torch.device, first_step: int) -> None:
        self.training, self.first_step, self.started = config.training, first_step, time.perf_counter()
        # Seconds at full use of every device that one image takes.
        self.ideal = training_flops(config) / (peak_flops(device, config.training.precision) * world_size())

    def numbers(self, meter: Meter, step: int) -> dict[str, float]:
        """`images_per_second` and `mfu` since the last log line, `eta_seconds` from the whole run so far."""
        rate = meter.count * self.training.batch_size / meter.elapsed
        self.ideal = min(self.ideal, 1 / rate)  # a peak that is exceeded was measured while the device was busy
        per_step = (time.perf_counter() - self.started) / max(1, step - self.first_step)
        return {
            "images_per_second": rate,
            "mfu": rate * self.ideal,
            "eta_seconds": (self.training.steps - step) * per_step,
        }
