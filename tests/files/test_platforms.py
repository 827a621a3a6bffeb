"""Where `fcntl` and some signals are not there, as on Windows, everything is imported and the locks work."""

import subprocess
import sys

from tests import started

WITHOUT = """
import importlib, os, pkgutil, signal, sys
def import_all():
    import epg
    names = [m.name for m in pkgutil.walk_packages(epg.__path__, "epg.") if not m.name.endswith("__main__")]
    return len([importlib.import_module(name) for name in names])
import_all()  # the libraries stay as they are
for name in [name for name in sys.modules if name.split(".")[0] == "epg"]:
    del sys.modules[name]
sys.modules["fcntl"] = sys.modules["resource"] = sys.modules["termios"] = None
for name in {signals}:
    delattr(signal, name)
for name in {calls}:
    delattr(os, name)
print(import_all())
"""
SIGNALS = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "pthread_sigmask", "pthread_kill", "setitimer")
CALLS = (
    "O_DIRECTORY",
    "O_CLOEXEC",
    "memfd_create",
    "register_at_fork",
    "sched_getaffinity",
    "uname",
    "getuid",
    "geteuid",
)


def test_every_module_is_imported_without_posix() -> None:
    code = WITHOUT.format(signals=SIGNALS, calls=CALLS)
    done = started.run("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 150


def test_the_package_runs_as_a_module_and_is_typed() -> None:
    done = subprocess.run([sys.executable, "-m", "epg", "--version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from importlib.metadata import version
    from importlib.resources import files

    assert done.stdout.strip() == version("epg")
    assert files("epg").joinpath("py.typed").is_file()
