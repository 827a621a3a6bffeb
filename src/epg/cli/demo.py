"""`epg demo`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from epg.cli.named import Weights
from epg.cli.numbers import Between, Decay


@dataclass(frozen=True)
class Demo:
    """Serve a page that draws with a model, to try it in the browser.

    Classes, seeds, steps, guidance, one step beside many. It is served on this machine alone, takes no files, and
    tells nobody (extra: demo).
    """

    model: tyro.conf.Positional[Weights]
    """Run folder, checkpoint, export, pipeline folder, user/repo on the Hub, or an asset (docs/zoo.md)."""
    host: str = "127.0.0.1"
    """Whom it listens to: this machine; 0.0.0.0 is the whole network."""
    port: Annotated[int, Between(1, 65535)] = 7860
    share: bool = False
    """Also at a public address, through gradio's servers."""
    ema: Decay | None = None
    """Which EMA decay to load, 0 for the weights as trained; the first if not given."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""

    def __call__(self) -> None:
        from epg.demo.command import serve

        serve(self.model, host=self.host, port=self.port, share=self.share, ema=self.ema, device=self.device)
