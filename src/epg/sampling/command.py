"""What `epg sample` does."""

import signal
from pathlib import Path

from epg.checkpoint.lock import locked
from epg.distributed import failing_together, processes, rank
from epg.errors import InterruptedRunError, UserError
from epg.messages import say
from epg.sampling.job import Job
from epg.sampling.request import Request, open_request
from epg.signals import name_of


def write_samples(checkpoint: str | Path, out: Path, request: Request) -> None:
    """Draws images into `out`: `000000.png` and so on, `grid.png`, and `samples.npz` or an animation if asked for.

    Under torchrun the processes share the work. An interrupted run is continued by the same command; its images are
    those of an uninterrupted one.

    Raises UserError for impossible settings or a folder begun with others, OutputError where it cannot be written.
    """
    for flag, number in (("--count", request.count), ("--batch-size", request.batch_size)):
        if number < 1:
            raise UserError(f"{flag} {number}: must be at least 1")
    try:
        with processes():
            sample_together(checkpoint, out, request)
    except KeyboardInterrupt as stop:
        name = name_of(stop.args[0] if stop.args else signal.SIGINT)
        text = f"stopped by {name}; finished images are in {out}, the same command continues"
        raise InterruptedRunError(text) from None


def sample_together(checkpoint: str | Path, out: Path, request: Request) -> None:
    """`write_samples` as one of the processes that share the work."""
    with failing_together():
        job = Job(open_request(checkpoint, request), out)
        job.folder.refuse_taken()
    with locked(out):
        with failing_together():
            continued = job.folder.claim(job.record) if rank() == 0 else False
        if continued:
            say(f"continuing in {out}")
        with failing_together():
            rate = job.draw()
        if rank() == 0:
            job.finish()
            speed = f", {rate:.1f} images/s" if rate else ""
            print(f"{request.count} images in {out}{speed}; see {out / 'grid.png'}")
