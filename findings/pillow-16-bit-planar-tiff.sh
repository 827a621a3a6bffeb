#!/usr/bin/env bash
# Pillow 13.0.0 (tifffile 2026.3.3 wrote the file and reads it back): a 16-bit RGB TIFF with its colours in separate planes
# (PlanarConfiguration = 2), uncompressed, opens without a word as an 8-bit RGB image of other pixels. Compressed it gives
# the high bytes, as it does for contiguous ones; 8 bits in planes are right, too.
# Seen: "uncompressed: 100 % of the values are not the high bytes", "zlib: 0 % ...". Fails when that changes.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install pillow==13.0.0 tifffile==2026.3.3 imagecodecs==2026.3.6 numpy==2.4.6
"$folder/venv/bin/python" - <<'P'
import io
import numpy as np, tifffile
from PIL import Image

values = np.random.default_rng(0).integers(0, 65536, (40, 50, 3)).astype(np.uint16)


def wrong(values, planar, compression):
    """The part of Pillow's values that differ from the high bytes (16 bits) or the bytes (8 bits) in the file."""
    stream = io.BytesIO()
    lying = np.moveaxis(values, -1, 0) if planar == "separate" else values
    tifffile.imwrite(stream, np.ascontiguousarray(lying), photometric="rgb", planarconfig=planar, compression=compression)
    back = tifffile.imread(io.BytesIO(stream.getvalue()))
    assert (back == lying).all(), "the file is valid"
    image = Image.open(io.BytesIO(stream.getvalue()))
    assert (image.mode, image.size) == ("RGB", (50, 40))
    return (np.asarray(image) != (values >> 8 if values.dtype == np.uint16 else values)).mean()


for compression in (None, "zlib"):
    assert wrong(values, "contig", compression) == 0
    assert wrong((values >> 8).astype(np.uint8), "separate", compression) == 0
    part = wrong(values, "separate", compression)
    print(f"{compression or 'uncompressed'}: {100 * part:.0f} % of the values are not the high bytes")
    assert (part == 0) if compression else (part > 0.9), "mended?"
P
