"""The model and its sampling for diffusers, `EPGPipeline` and `EPGModel`, and the folders they are saved in."""

from typing import Any

from epg.errors import UserError
from epg.extras import install

__all__ = ["EPGModel", "EPGPipeline"]


def __getattr__(name: str) -> Any:
    """The two classes, imported when they are first asked for: reading a folder needs no diffusers."""
    if name not in __all__:
        raise AttributeError(f"module 'epg.pipeline' has no attribute {name!r}")
    try:
        import diffusers  # noqa: F401
    except ImportError as error:
        raise UserError(f"pipelines need diffusers: {install('diffusers')}") from error
    from epg.pipeline.installed import EPGPipeline
    from epg.pipeline.model import EPGModel

    return {"EPGModel": EPGModel, "EPGPipeline": EPGPipeline}[name]
