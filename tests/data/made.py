"""Image files and colour profiles written byte by byte, so that every value in them is known."""

import struct
import zlib

import numpy as np

PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}


def png(values, bits, colour, before=(), interlaced=False):
    """A PNG of `values` (H, W) or (H, W, C); `colour` is its colour type, `before` (name, data) of further chunks."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = np.asarray(values).reshape(len(values), -1)
    if bits < 8:
        unpacked = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        lines = np.packbits(unpacked.reshape(len(rows), -1).astype(np.uint8), axis=1)
    else:
        lines = np.ascontiguousarray(rows.astype(f">u{bits // 8}")).view(np.uint8)
    width = rows.shape[1] // PNG_CHANNELS[colour]
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    data = b"".join(b"\0" + line.tobytes() for line in lines)
    chunks = [(b"IHDR", header), *before, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*item) for item in chunks)


def tiff(values, photometric, order="<", extra=None, sample_format=1, planar=1, tags=()):
    """An uncompressed TIFF of `values` (H, W) or (H, W, C); with planar = 2 its colours lie in separate planes."""
    values = np.asarray(values)
    height, width, channels = (*values.shape, 1)[:3]
    size = values.dtype.itemsize
    lying = values if planar == 1 else np.moveaxis(values, -1, 0)
    pixels = np.ascontiguousarray(lying.astype(values.dtype.newbyteorder(order))).tobytes()
    plane = len(pixels) // (channels if planar == 2 else 1)
    offsets = [8 + plane * k for k in range(channels if planar == 2 else 1)]
    entries = [
        (256, "H", [width]),
        (257, "H", [height]),
        (258, "H", [8 * size] * channels),
        (259, "H", [1]),
        (262, "H", [photometric]),
        (273, "I", offsets),
        (277, "H", [channels]),
        (278, "H", [height]),
        (279, "I", [plane] * len(offsets)),
        (284, "H", [planar]),
        *([] if extra is None else [(338, "H", [extra])]),
        (339, "H", [sample_format] * channels),
        *tags,
    ]
    place, table, rest = 8 + len(pixels), b"", b""
    after = place + 2 + 12 * len(entries) + 4
    for tag, kind, numbers in sorted(entries):
        data = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        if len(data) > 4:
            data, rest = struct.pack(f"{order}I", after + len(rest)), rest + data + b"\0" * (len(data) % 2)
        table += struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4, "B": 1}[kind], len(numbers)) + data.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    start = magic + struct.pack(f"{order}I", place)
    return start + pixels + struct.pack(f"{order}H", len(entries)) + table + b"\0\0\0\0" + rest


def profile(space, gamma=2.2, primaries=None):
    """An ICC profile: "GRAY" or "RGB " of a gamma, or "CMYK" whose inks all darken alike."""
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"made\0" + b"\0" * 78,
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz((0.9642, 1, 0.8249)),
    }
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    if space == "GRAY":
        tags[b"kTRC"] = curve
    elif space == "RGB ":
        for name, point in zip("rgb", primaries, strict=True):
            tags[f"{name}XYZ".encode()], tags[f"{name}TRC".encode()] = _xyz(point), curve
    else:  # a table with paper and full ink of every colour; L goes from 100 to 0 with the sum of the inks
        inks = np.stack(np.meshgrid(*[[0, 1]] * 4, indexing="ij"), axis=-1).reshape(-1, 4).sum(axis=1)
        lab = np.stack([255 - 255 * inks // 4, np.full(16, 128), np.full(16, 128)], axis=1).astype(np.uint8)
        matrix = b"".join(struct.pack(">i", 65536 * (k % 4 == 0)) for k in range(9))
        ramp = bytes(range(256))
        tags[b"A2B0"] = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + ramp * 4 + lab.tobytes() + ramp * 3
    start, table, data = 132 + 12 * len(tags), b"", b""
    for name, body in tags.items():
        table += name + struct.pack(">II", start + len(data), len(body))
        data += body + b"\0" * (-len(body) % 4)
    kind = (b"prtr" if space == "CMYK" else b"mntr") + space.encode() + (b"Lab " if space == "CMYK" else b"XYZ ")
    size = 132 + len(table) + len(data)
    head = struct.pack(">I", size) + b"\0\0\0\0" + struct.pack(">I", 0x02400000) + kind + b"\0" * 12 + b"acsp"
    head = (head + b"\0" * 28 + _xyz((0.9642, 1, 0.8249))[8:]).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + table + data


DISPLAY_P3 = ((0.5151, 0.2412, -0.001), (0.292, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))


def _xyz(point):
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in point)
