"""Image files made to exhaust, mislead or run something."""

import io
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image, PngImagePlugin
from tests.data.made import DISPLAY_P3, profile
from tests.data.photos import encoded, photo


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def flat_png(width, height, bits=8, colour=0, extra=b""):
    """A black PNG of any declared size in few bytes; `colour` is PNG's colour type."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" * (1 + -(-width * channels * bits // 8))
    packer, data = zlib.compressobj(9), []
    for _ in range(height):
        data.append(packer.compress(row))
    data.append(packer.flush())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + header + palette + extra + chunk(b"IDAT", b"".join(data)) + chunk(b"IEND", b"")


def declared(data, width, height):
    """A PNG whose header declares another size than its data has."""
    header = struct.pack(">II", width, height) + data[24:29]
    return data[:8] + chunk(b"IHDR", header) + data[33:]


@cache
def hostile_files():
    """{name: (content, expected)}: expected is "good" (decoded), "bad" (refused with a reason) or "any"."""
    small = photo(1, 96, 80)
    png = encoded(small, "PNG")
    rgba, palette = small.convert("RGBA"), small.quantize(16)
    rgba.putalpha(100)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9286] = "x" * 60_000
    icc = chunk(b"iCCP", b"wide\0\0" + zlib.compress(profile("RGB ", primaries=DISPLAY_P3)))
    files = {
        f"bomb{n}.png": (flat_png(side, side, bits, colour), "bad")
        for n, (side, bits, colour) in enumerate(
            [(30_000, 1, 0), (20_000, 1, 3), (12_000, 8, 0), (9_000, 1, 0), (8_500, 8, 2), (6_500, 8, 6), (4_950, 8, 4)]
        )
    }
    files |= {
        "under-the-limit.png": (flat_png(4_890, 4_890, 8, 2), "good"),
        "under-alpha.png": (flat_png(4_890, 4_890, 8, 6), "good"),
        "under-16bit.png": (flat_png(4_890, 4_890, 16, 0), "good"),
        "under-16bit-colour.png": (flat_png(2_820, 2_820, 16, 2), "good"),
        "over-16bit-colour.png": (flat_png(4_890, 4_890, 16, 2), "bad"),
        "under-profile.png": (flat_png(4_000, 4_000, 8, 6, icc), "good"),
        "under-palette.png": (flat_png(4_890, 4_890, 8, 3), "good"),
        "elongated.png": (flat_png(60_000, 1, 8, 0), "bad"),
        "elongated2.png": (flat_png(1, 60_000, 8, 0), "bad"),
        "declares-4e9.png": (declared(png, 2**31 - 1, 2**31 - 1), "bad"),
        "declares-more.png": (declared(png, 5_000, 5_000), "bad"),
        "declares-0.png": (declared(png, 0, 5), "bad"),
        "text.png": (_with_text(png, 100_000), "any"),
        "ztxt-bomb.png": (_ztxt(png), "any"),
        "iccp-bomb.png": (_iccp(png), "any"),
        "frames.gif": (_frames(100_000), "good"),
        "frames.png": (_apng(), "good"),
        "frames.webp": (encoded(small, "WEBP", save_all=True, append_images=[photo(2, 96, 80)] * 20), "good"),
        "huge-gif-screen.gif": (
            b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"\x2c" + bytes(9) + b";",
            "bad",
        ),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 90 90\n%%EndComments\n(/tmp/x)run\n", "bad"),
        "fits.png": (b"SIMPLE  =                    T" + b" " * 3000, "bad"),
        "pdf.png": (b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\n%%EOF\n", "bad"),
        "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", "bad"),
        "ico.png": (encoded(small, "ICO"), "bad"),
        "tiff.png": (encoded(small, "TIFF"), "good"),
        "jpeg.png": (encoded(small), "good"),
        "webp.jpg": (encoded(small, "WEBP"), "good"),
        "png.jpeg": (png, "good"),
        "html.jpg": (b"<html>404 Not Found</html>", "bad"),
        "empty.jpg": (b"", "bad"),
        "one-byte.jpg": (b"\xff", "bad"),
        "zeros.png": (bytes(10_000), "bad"),
        "noise.jpg": (np.random.default_rng(0).bytes(10_000), "bad"),
        "truncated.jpg": (encoded(small)[:1500], "bad"),
        "truncated.png": (png[:5000], "bad"),
        "truncated.webp": (encoded(small, "WEBP")[:1000], "bad"),
        "trailing.jpg": (encoded(small) + b"x" * 100_000, "good"),
        "16bit.png": (encoded(Image.fromarray(np.arange(6400, dtype=np.uint16).reshape(80, 80) * 10), "PNG"), "good"),
        "cmyk.jpg": (encoded(small.convert("CMYK")), "good"),
        "grey.jpg": (encoded(small.convert("L")), "good"),
        "bilevel.png": (encoded(small.convert("1"), "PNG"), "good"),
        "palette-alpha.png": (encoded(palette, "PNG", transparency=3), "good"),
        "grey-alpha.png": (encoded(small.convert("LA"), "PNG"), "good"),
        "alpha.webp": (encoded(rgba, "WEBP", lossless=True), "good"),
        "rotated.jpg": (encoded(small, exif=exif), "good"),
        "bad-exif.jpg": (encoded(small, exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(50)), "good"),
        "float.tif": (encoded(Image.fromarray(np.ones((40, 40), np.float32)), "TIFF"), "bad"),
        "bmp-declares.bmp": (_bmp(60_000, 60_000), "bad"),
        "bmp-negative.bmp": (_bmp(-5, 2**31 - 1), "bad"),
        "ppm-declares.ppm": (b"P6\n50000 50000\n255\n" + bytes(100), "bad"),
        "ppm-short.ppm": (b"P6\n5000 5000\n255\n" + bytes(100), "bad"),
        "ppm-digits.ppm": (b"P6\n" + b"9" * 100_000 + b" 1\n255\n", "bad"),
        "tiff-loop.tif": (_tiff_loop(), "bad"),
        "tiff-strips.tif": (_tiff_declares(40_000), "bad"),
    }
    return files


def _with_text(png, count):
    return png[:33] + chunk(b"tEXt", b"k\0v") * count + png[33:]


def _ztxt(png):
    return png[:33] + chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000), 9)) + png[33:]


def _iccp(png):
    return png[:33] + chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100_000_000), 9)) + png[33:]


def _frames(count):
    frame = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return head + frame * count + b";"


def _apng():
    stream = io.BytesIO()
    frames = [photo(i, 32, 32) for i in range(30)]
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:], pnginfo=PngImagePlugin.PngInfo())
    return stream.getvalue()


def _bmp(width, height):
    return (
        b"BM"
        + struct.pack("<IHHI", 200, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def _tiff_loop():
    """An image directory whose successor is itself."""
    entries = [(256, 4, 1, 8), (257, 4, 1, 8)]
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 8)


def _tiff_declares(side):
    entries = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
               (277, 3, 1, 1), (278, 4, 1, side), (279, 4, 1, 2**31)]  # fmt: skip
    body = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + body + struct.pack("<I", 0)
