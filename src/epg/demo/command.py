"""What `epg demo` does."""

import importlib.util
import time
from pathlib import Path

from epg.checkpoint.loading import load
from epg.demo.drawing import Drawer
from epg.demo.page import launched, page
from epg.distributed import pick_device
from epg.errors import UserError
from epg.extras import install


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    ema: float | None = None,
    device: str,
) -> None:
    """Serves the page of a model until it is stopped. Raises ArtefactError, UserError."""
    drawer = Drawer(load(model, ema=ema, device=pick_device(device)))
    if importlib.util.find_spec("gradio") is None:
        raise UserError(f"epg demo: the page needs gradio. {install('demo')}.")
    blocks = page(drawer, f"EPG: {called(model)}")
    try:
        _, address, public = launched(blocks, host, port, share)
        also = f", and for everyone who knows it at {public}" if public else ""
        print(f"Demo at {address}{also}. Ctrl-C ends it.", flush=True)
        while True:
            time.sleep(3600)
    finally:
        blocks.close(verbose=False)


def called(model: str) -> str:
    """Of a folder its last two names; an address without its hash."""
    return "/".join(Path(model).resolve().parts[-2:]) if Path(model).exists() else model.partition("#")[0]
