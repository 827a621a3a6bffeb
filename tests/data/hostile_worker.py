"""Decodes every file of a folder, each under watch; prints one JSON line per file. Run as a process of its own."""

import json
import os
import resource
import sys
import time
from pathlib import Path

from epg.data.prepared.encode import PixelOptions, make_record
from epg.data.sources.files import read_file
from epg.errors import DataError

EVENTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "socket.connect",
    "socket.getaddrinfo",
)


def status(key):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main(folder, headroom, mode):
    events = []
    sys.addaudithook(lambda event, arguments: events.append(event) if event in EVENTS else None)
    make_record(_warm(), PixelOptions(64))
    limit = status("VmSize") + headroom
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak
        before, start = status("VmRSS"), time.process_time()
        try:
            if mode == "pillow":  # the control: Pillow as it comes
                from PIL import Image

                Image.open(path).convert("RGB").resize((64, 64))
                outcome, reason = "good", ""
            else:
                make_record(read_file(path), PixelOptions(64))
                outcome, reason = "good", ""
        except (DataError, OSError) as error:
            outcome, reason = "bad", str(error)
        except Exception as error:
            outcome, reason = "crash", repr(error)
        took, cost = time.process_time() - start, status("VmHWM") - before
        print(json.dumps({"name": name, "outcome": outcome, "reason": reason, "s": took, "bytes": cost}), flush=True)
    print(json.dumps({"events": events}))


def _warm():
    import io

    from PIL import Image

    stream = io.BytesIO()
    Image.new("RGB", (80, 80)).save(stream, "PNG")
    return stream.getvalue()


main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
