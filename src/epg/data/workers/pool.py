"""Numbered jobs on several processes, where an image may kill or hang its process without taking the others along."""

from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from epg.data.workers.crew import Begin, Call, Crew, Lost
from epg.errors import UserError

HANG_S = 300.0  # of one image

Job = Callable[[int, dict[int, str], Begin], Any]
"""(number of the job, images that crashed with the reason, begin)."""


def run_jobs(
    job: Job, numbers: Iterable[int], workers: int, on_images: Callable[[int], None], hang_s: float = HANG_S
) -> list[Any]:
    """The results of all jobs in their order, done in this process (workers = 0) or in at most `workers` others.

    `on_images(n)` hears now and then how many further images were begun. An image whose process dies twice (once may be
    bad luck: memory ran out), or works for `hang_s` seconds on it, is given to `job` as crashed when its job is done
    again. Raises what `job` raises.
    """
    numbers = list(numbers)
    workers = min(workers, len(numbers))
    if workers == 0:
        return [job(number, {}, lambda image: on_images(1)) for number in numbers]
    queue, told, results = deque(numbers), 0, dict[int, Any]()
    deaths, crashed = dict[int, int](), dict[int, str]()
    crew, running = Crew(partial(_do, job), workers, hang_s, "spawn"), list[Call]()
    try:
        while queue or running:
            try:
                while queue and crew.idle():
                    running.append(crew.send((queue.popleft(), crashed)))
                crew.listen()
            except Lost as lost:
                _note(lost, deaths, crashed, hang_s)
                again = crew.replace(lost.worker)
                running = [call for call in running if call not in again]
                queue.extendleft(call.task[0] for call in again)
            for call in [call for call in running if call.done]:
                running.remove(call)
                results[call.task[0]] = call.result()
            begun = crew.begun()
            on_images(begun - told)
            told = begun
    finally:
        crew.close()
    return [results[number] for number in numbers]


def _do(job: Job, task: tuple[int, dict[int, str]], begin: Begin) -> Any:
    return job(*task, begin)


def _note(lost: Lost, deaths: dict[int, int], crashed: dict[int, str], hang_s: float) -> None:
    """Raises UserError for a worker that could not even start."""
    if lost.image is None:
        raise UserError(
            f"a worker process died before its first image ({lost}). If memory is short, use fewer --workers"
        ) from None
    deaths[lost.image] = deaths.get(lost.image, 0) + 1
    if lost.hangs:
        crashed[lost.image] = f"decoding it took more than {hang_s:.0f} s"
    elif deaths[lost.image] > 1:
        crashed[lost.image] = f"decoding it killed the process twice ({lost})"
