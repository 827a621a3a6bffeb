"""F4: a loader process that dies or hangs ends training with an error that names the image it was at."""

import time
from pathlib import Path

from tests.reliability.driver import Driver, run_config

FAULTS = ("SIGKILL", "SIGSEGV", "MemoryError", "SIGSTOP")
TIMEOUT = 4.0  # data.timeout
LIMIT = 5.0  # seconds until the error, of a hanging worker after the timeout


def problem(driver: Driver, folder: Path, fault: str, timeout: float = TIMEOUT) -> str:
    """What went wrong, if anything."""
    config = run_config("diffusion", 50, data={"workers": 2, "timeout": timeout}, training={"timeout": 30.0})
    job = driver.train(folder, config, in_a_worker={"what": fault})
    met = [line.partition(" ") for line in Path(f"{folder}.fault").read_text().splitlines()]  # by each loader process
    took = time.time() - float(met[0][0])
    if job.codes != [65 if fault != "MemoryError" else job.codes[0]] or job.codes == [0]:
        return f"{fault}: ended with {job.codes}: {job.said[-400:]}"
    if not any(f"{sample}." in job.said or f"{sample}:" in job.said for _, _, sample in met):
        return f"{fault}: does not name an image of {met}: {job.said[-400:]}"
    return f"{fault}: took {took:.1f} s" if took > LIMIT + timeout * (fault == "SIGSTOP") else ""
