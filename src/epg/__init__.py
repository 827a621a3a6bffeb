"""EPG: image generators trained directly on pixels, without a VAE.

`load` a model, `train` one. Both are imported when they are first asked for: the command line starts without torch.
"""

from typing import TYPE_CHECKING

__all__ = ["load"]

if TYPE_CHECKING:
    from epg.checkpoint.loading import load
else:

    def __getattr__(name):
        if name == "load":
            from epg.checkpoint.loading import load

            return load
        raise AttributeError(f"module 'epg' has no attribute {name!r}")
