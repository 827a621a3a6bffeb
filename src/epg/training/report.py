"""The log lines of a run: what the steps since the last one gave, rates, and warnings of loss spikes."""

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor

from epg.config.settings import RunConfig
from epg.distributed import agree, rank
from epg.training.meter import Meter, Speed, means
from epg.training.spikes import LossSpikeWarning, SpikeDetector
from epg.training.throughput import peak_memory


class Reporter:
    """Collects steps, and makes the numbers of a log line of them."""

    def __init__(self, config: RunConfig, device: torch.device, first_step: int) -> None:
        self.device = device
        self.meter = Meter()
        self.speed = Speed(config, device, first_step)
        self.spikes = SpikeDetector()

    def add(self, step: int, losses: dict[str, Tensor], waited: float) -> None:
        """The losses of a step (none if it was skipped) and the seconds waited for its data."""
        self.meter.add(step, losses, waited)

    def line(self, step: int, others: Mapping[str, float | Tensor]) -> dict[str, float]:
        """The numbers after `step` steps, `others` among them. All processes call it together."""
        history = self.meter.history()
        rates = self.speed.numbers(self.meter, step)
        wait, memory = agree(self.meter.waited / self.meter.elapsed, peak_memory(self.device), device=self.device)
        on_cpu = {"cpu_seconds": self.meter.cpu_seconds()} if self.device.type == "cpu" else {}
        return {
            **means(history),
            **{name: float(value) for name, value in others.items()},
            **rates,
            **on_cpu,
            "data_wait": wait,
            "peak_memory_gib": memory,
            **self._spikes(history),
        }

    def restart(self) -> None:
        """Starts the next line; called after previews and checkpoints, whose time is nobody's rate."""
        self.meter = Meter()

    def _spikes(self, history: dict[str, list[float]]) -> dict[str, float]:
        """Warns of every spike; the number so far, and where the last one was."""
        terms = {name: values for name, values in history.items() if "/" not in name and name != "grad_norm"}
        numbers: dict[str, float] = {}
        for i, step in enumerate(self.meter.steps):
            spikes = self.spikes.check(step, {name: values[i] for name, values in terms.items()})
            if spikes:
                numbers = {"spike_step": step, "spike_ratio": spikes[0].ratio}
                if rank() == 0:
                    warnings.warn("; ".join(map(str, spikes)), LossSpikeWarning, stacklevel=2)
        return {"spikes": self.spikes.count, **numbers}
