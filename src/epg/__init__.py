"""EPG: image generators trained directly on pixels, without a VAE.

`load` opens a model, `train` makes one. They are imported when they are first asked for: the command line starts
without torch.
"""

from typing import TYPE_CHECKING

__all__ = ["Callback", "load", "train"]

if TYPE_CHECKING:
    from epg.checkpoint.loading import load
    from epg.python import train
    from epg.training.callbacks import Callback
else:

    def __getattr__(name):
        if name == "load":
            from epg.checkpoint.loading import load

            return load
        if name == "train":
            from epg.python import train

            return train
        if name == "Callback":
            from epg.training.callbacks import Callback

            return Callback
        raise AttributeError(f"module 'epg' has no attribute {name!r}")
