"""How many images per second the data path gives: decoding by format, the loader against bare decoding, the views.

    python benchmarks/data.py                 # everything
    python benchmarks/data.py decode loader   # some of it
    python benchmarks/data.py views --device cuda --batch-size 256
    python benchmarks/data.py threads         # a decoding thread or process beside a busy loop
    python benchmarks/data.py resize --source PHOTOS   # how much ADM's rounding brightens

Images are parts of scikit-learn's two photographs, or those of --source (anything that `epg prepare` takes).
"""

import argparse
import io
import multiprocessing as mp
import os
import queue
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from epg.data.dataset import open_dataset
from epg.data.decode import open_flat
from epg.data.loading.loader import BatchLoader
from epg.data.pixels.resize import center_crop
from epg.data.prepared.encode import PixelOptions, decode_stored
from epg.data.prepared.prepare import prepare
from epg.data.prepared.store import Store
from epg.data.sources.base import SourceOptions
from epg.data.sources.open import open_source
from epg.data.views.augment import MocoViews
from epg.randomness import Draws

FORMATS = ("png", "webp", "jpeg", "raw")


def make_photographs(folder, count, size):
    """JPEG photographs a little larger than `size`; of exactly that size for the format "jpeg"."""
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    sources = [Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg")]
    for kind, side in (("larger", min(427, size * 5 // 4)), ("exact", size)):
        (folder / kind).mkdir()
        for i in range(count):
            image = sources[i % 2]
            side_now = min(side, 427)
            left, top = int(rng.integers(0, 641 - side_now)), int(rng.integers(0, 428 - side_now))
            part = image.crop((left, top, left + side_now, top + side_now)).resize((side, side))
            part.save(folder / kind / f"{i:05d}.jpg", quality=92)


def stores(folder, options):
    """A prepared set per format."""
    if options.source is None:
        make_photographs(folder, options.images, options.image_size)
    for name in options.formats:
        if name == "jpeg" and options.source is not None:
            continue
        source = options.source or str(folder / ("exact" if name == "jpeg" else "larger"))
        kind = "png" if name == "jpeg" else name
        start = time.process_time()
        pixels = PixelOptions(options.image_size, format=kind)
        prepare(source, folder / name, pixels, options=SourceOptions(labels="none"))
        yield name, folder / name, time.process_time() - start


def pillow(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def rate(action, seconds, clock=time.process_time):
    """Calls of action(i) per second of this process's CPU time: other programs on the machine do not disturb it."""
    action(0)
    count, start = 0, clock()
    while clock() - start < seconds:
        action(count)
        count += 1
    return count / (clock() - start)


def decode(options, sets):
    print(f"\nimages per second of one core's CPU time, {options.image_size}x{options.image_size}")
    print(f"{'format':8}{'kB/image':>10}{'prepare':>10}{'Pillow':>10}{'ours':>10}{'checked':>10}")
    for name, folder, seconds in sets:
        rates = [len(Store(folder)) / seconds, *decode_rates(folder, options)]
        size = sum(Store(folder).index["length"]) / len(Store(folder)) / 1e3
        print(f"{name:8}{size:10.1f}" + "".join(f"{value:10.0f}" for value in rates), flush=True)


def decode_rates(folder, options):
    """Pillow alone, our reader without and with comparing hashes."""
    store, count = Store(folder), len(Store(folder))
    data = [store.read(i) for i in range(count)]
    dataset = open_dataset(folder, image_size=options.image_size)
    dataset.seen = np.zeros(-(-len(dataset) // 8), np.uint8)
    dataset._is_due = lambda index: True
    return (
        rate(lambda i: pillow(data[i % count]), options.seconds),
        rate(lambda i: decode_stored(data[i % count], options.image_size, 3), options.seconds),
        rate(lambda i: dataset[i % count], options.seconds),
    )


def _bare(folder, count, start, result):
    store = Store(folder)
    data = [store.read(i) for i in range(len(store))]
    start.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    for i in range(count):
        pillow(data[i % len(data)])
    result.put((time.perf_counter() - wall, time.process_time() - cpu))


def bare_rate(folder, workers, count):
    """Pillow alone from bytes in memory, in `workers` processes at once: images/s, and per second of CPU time."""
    context = mp.get_context("spawn")
    start, result = context.Barrier(workers), context.Queue()
    processes = [context.Process(target=_bare, args=(folder, count // workers, start, result)) for _ in range(workers)]
    for process in processes:
        process.start()
    times = [result.get() for _ in processes]
    for process in processes:
        process.join()
    return count / max(wall for wall, _ in times), count / sum(cpu for _, cpu in times)


def loader_rate(folder, options, workers):
    """The same of our loader. CPU time is that of all its processes, from idle to idle, when as much is decoded as is
    taken; starting the processes is not counted."""
    dataset = open_dataset(folder, image_size=options.image_size)
    dataset.seen = np.full(-(-len(dataset) // 8), 255, np.uint8)  # as after the first epoch
    batches = BatchLoader(dataset, batch_size=options.batch_size, seed=0, workers=workers)
    loader = iter(batches)
    for _ in range(2 * batches.slots):  # every slot has been touched, and nothing is ready beforehand
        next(loader)
    start = time.perf_counter()
    for _ in range(options.steps):
        next(loader)
    wall = time.perf_counter() - start
    cpu = idle_cpu_seconds()
    for _ in range(options.steps):
        next(loader)
    cpu = idle_cpu_seconds() - cpu
    loader.close()
    images = options.steps * options.batch_size
    return images / wall, images / cpu


def idle_cpu_seconds():
    """CPU time of this process and its children once it stops growing."""
    last = -1.0
    while (now := time.process_time() + sum(map(child_seconds, mp.active_children()))) > last + 0.01:
        last = now
        time.sleep(0.3)
    return now


def child_seconds(process):
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loader(options, sets):
    print(f"\nloader against bare decoding (Pillow, from memory), batch {options.batch_size}")
    print(f"{'':16}{'images/s':>20}{'':8}{'per CPU second':>20}")
    print(f"{'format':8}{'workers':>8}{'bare':>10}{'loader':>10}{'share':>8}{'bare':>10}{'loader':>10}{'share':>8}")
    for name, folder, _ in sets:
        for workers in options.workers:
            count = options.steps * options.batch_size
            trials = [
                (*bare_rate(folder, workers, count), *loader_rate(folder, options, workers))
                for _ in range(options.repeats)
            ]
            bare, bare_cpu, ours, ours_cpu = (sorted(column)[len(column) // 2] for column in zip(*trials, strict=True))
            first = f"{name:8}{workers:8}{bare:10.0f}{ours:10.0f}{100 * ours / bare:7.0f}%"
            print(f"{first}{bare_cpu:10.0f}{ours_cpu:10.0f}{100 * ours_cpu / bare_cpu:7.0f}%", flush=True)


def views(options, sets):
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = True  # as in training
    shape = (options.batch_size, 3, options.image_size, options.image_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)
    pipeline, draws = MocoViews(), Draws(0, 0, 0, options.batch_size, device)

    def both(_):
        for view in (0, 1):
            pipeline(images, draws.uniform(f"view {view}", (pipeline.numbers,)), view)
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(3 if device.type == "cuda" else 1):
        both(0)
    result = options.batch_size * rate(both, options.seconds, time.perf_counter)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    print(f"\nboth MoCo v3 views, {options.image_size}x{options.image_size}, batch {options.batch_size}, {where}: "
          f"{result:.0f} images/s")  # fmt: skip


def idle(seconds):
    """A loop that only waits, as one that waits for the device."""
    time.sleep(seconds)
    return 1


def python(seconds):
    """A loop that never gives up the interpreter by itself."""
    count, total, end = 0, 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for i in range(1000):
            total += i
        count += 1
    return count


def dispatch(seconds):
    """A loop of small operations, as the host's side of a training step: the interpreter is given up now and then."""
    a, count, end = torch.zeros(16, 16), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        for _ in range(100):
            a = torch.tanh(a @ a + 1)
        count += 1
    return count


def products(seconds):
    """A loop of large products, as training on a CPU: the interpreter is free most of the time."""
    a, count, end = torch.zeros(512, 512), 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        a = torch.tanh(a @ a)
        count += 1
    return count


BUSY = {"idle": idle, "python": python, "dispatch": dispatch, "products": products}


def _decode_until(folder, image_size, begin, end, result):
    dataset = open_dataset(folder, image_size=image_size)
    pixels, count = np.empty((64, image_size, image_size, 3), np.uint8).transpose(0, 3, 1, 2), 0
    begin.wait(120)
    while not end.is_set():
        pixels[count % 64] = dataset[count % len(dataset)][0]
        count += 1
    result.put(count)


def beside(folder, options, kind, loop):
    """Images/s of one decoder, a "thread" or a "process", and turns/s of the loop it works beside."""
    context = mp.get_context("spawn") if kind == "process" else threading
    begin = context.Barrier(2)
    end, result = context.Event(), mp.get_context("spawn").Queue() if kind == "process" else queue.Queue()
    start = context.Process if kind == "process" else threading.Thread
    worker = start(target=_decode_until, args=(folder, options.image_size, begin, end, result))
    worker.start()
    begin.wait(120)
    begun = time.perf_counter()
    turns = BUSY[loop](options.seconds)
    end.set()
    seconds = time.perf_counter() - begun
    images = result.get()
    worker.join()
    return images / seconds, turns / seconds


def threads(options, sets):
    print("\none decoder beside a loop: images/s, and turns/s of the loop against those it makes alone")
    print(f"{'format':8}{'loop':>10}{'thread':>10}{'process':>10}{'share':>8}{'loop beside thread':>20}{'process':>10}")
    for name, folder, _ in sets:
        for loop in BUSY:
            alone = BUSY[loop](options.seconds) / options.seconds
            pairs = [
                [*beside(folder, options, "thread", loop), *beside(folder, options, "process", loop)]
                for _ in range(options.repeats)
            ]
            thread, with_thread, process, with_process = (sorted(c)[len(c) // 2] for c in zip(*pairs, strict=True))
            print(f"{name:8}{loop:>10}{thread:10.0f}{process:10.0f}{100 * thread / process:7.0f}%"
                  f"{100 * with_thread / alone:19.0f}%{100 * with_process / alone:9.0f}%", flush=True)  # fmt: skip


def resize(options, _):
    """Grey levels that ADM's scaling is brighter than the same filters without rounding, and images/s of both."""
    source = open_source(options.source, SourceOptions(labels="none"))
    images = [open_flat(source.read(i), 3)[0] for i in range(min(len(source), options.images))]
    print(f"\n{len(images)} images: mean of adm minus exact, grey levels; images/s of one core's CPU time")
    for size in (512, 256, 128, 64, 32):
        chosen = [image for image in images if min(image.size) >= size]
        means, rates = [], []
        for how in ("adm", "exact"):
            start = time.process_time()
            means.append(np.mean([np.asarray(center_crop(image, size, how)).mean() for image in chosen]))
            rates.append(len(chosen) / (time.process_time() - start))
        print(f"{size:5}: {means[0] - means[1]:+.2f} of {means[1]:.1f} ({len(chosen)} images)   "
              f"adm {rates[0]:.0f}, exact {rates[1]:.0f} images/s", flush=True)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["decode", "loader", "views"])
    parser.add_argument("--source", help="anything that epg prepare takes, instead of scikit-learn's photographs")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--steps", type=int, default=20, help="of each measurement of the loader")
    parser.add_argument("--repeats", type=int, default=3, help="of each loader measurement; the median counts")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure = {"decode": decode, "loader": loader, "views": views, "resize": resize, "threads": threads}
    with tempfile.TemporaryDirectory() as folder:
        sets = list(stores(Path(folder), options)) if set(options.what) - {"views", "resize"} else []
        for name in options.what:
            measure[name](options, sets)


if __name__ == "__main__":
    main()
