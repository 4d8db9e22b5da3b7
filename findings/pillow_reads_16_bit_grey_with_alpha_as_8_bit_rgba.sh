#!/usr/bin/env bash
# Pillow 13.0.0 opens a PNG of 16-bit grey with alpha as RGBA with 8 bits a channel, without a warning.
#
# The PNG specification allows 16 bits for grey with alpha (colour type 4), as it does for grey alone (colour type 0).
# Pillow keeps the 16 bits of grey alone, in mode I;16. Where there is an alpha channel it keeps the upper byte of each
# value, so 65,536 levels of grey become 256. Neither the image's mode nor its `info` says that the file had more; only
# byte 24 of the file does, its bit depth. pypng 0.20220715.0 reads both files in full.
#
# Seen on 2026-11-28, with Python 3.11 on Linux:
#
#> grey             pypng: 65536 levels, Pillow: mode I;16, 65536 levels, a pixel of 0x1234 is 0x1234
#> grey with alpha  pypng: 65536 levels, Pillow: mode RGBA, 256 levels, a pixel of 0x1234 is 0x12
#
# This script installs both packages into a temporary folder, writes the files and reads them. It fails if the output is
# no longer the lines after #>. It needs Python 3.11 or later.
set -euo pipefail
expected=$(sed -n 's/^#> //p' "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet Pillow==13.0.0 pypng==0.20220715.0
cat >"$folder/finding.py" <<'END'
import platform
import struct
import sys
import zlib

import PIL
import png
from PIL import Image

print(f"Python {platform.python_version()}, Pillow {PIL.__version__}, pypng {png.__version__}", file=sys.stderr)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write(path, color_type, pixel):
    """256 x 256 pixels, one of each level of grey from 0 to 65,535, 16 bits each, unfiltered."""
    header = struct.pack(">IIBBBBB", 256, 256, 16, color_type, 0, 0, 0)
    rows = [b"\0" + b"".join(pixel(256 * y + x) for x in range(256)) for y in range(256)]
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header))
        file.write(chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b""))


def show(title, path, channels):
    _, _, rows, _ = png.Reader(path).read()
    in_full = {level for row in rows for level in row[::channels]}
    with Image.open(path) as image:
        read = [image.getpixel((x, y)) for y in range(256) for x in range(256)]
        mode = image.mode
    grey = [pixel[0] if isinstance(pixel, tuple) else pixel for pixel in read]
    print(f"{title:16} pypng: {len(in_full)} levels, Pillow: mode {mode}, {len(set(grey))} levels,", end=" ")
    print(f"a pixel of 0x1234 is {grey[0x1234]:#x}")


write("grey.png", 0, lambda level: struct.pack(">H", level))
write("grey_alpha.png", 4, lambda level: struct.pack(">HH", level, 65535))
show("grey", "grey.png", 1)
show("grey with alpha", "grey_alpha.png", 2)
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
