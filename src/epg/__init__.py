"""EPG: image generators trained directly on pixels, without a VAE."""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """`epg.load`, imported when it is first asked for: the command line starts fast without torch."""
    if name == "load":
        from epg.checkpoint.loading import load

        return load
    raise AttributeError(f"module 'epg' has no attribute {name!r}")
