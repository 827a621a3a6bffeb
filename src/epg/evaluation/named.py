"""What is to be judged, by its name alone; needs no torch."""

from pathlib import Path

from epg.data.sources.open import is_packed
from epg.data.sources.remote import is_remote
from epg.errors import UserError
from epg.storage import assets, hub


def refuse_missing(name: str) -> None:
    """Raises UserError for a name by which only a folder could be meant, and there is none."""
    place = Path(name).expanduser()
    far = name == "digits" or is_remote(name) or assets.is_address(name) or hub.is_repository(name)
    if not far and not place.exists() and place.suffix != ".npz" and not is_packed(place):
        raise no_samples(name)


def no_samples(name: str) -> UserError:
    """What to say where there are no images."""
    found = "no samples" if Path(name).expanduser().exists() else "nothing here"
    return UserError(f"{name}: {found}. Pass a run folder, an .npz, a folder of images, or a data set.")
