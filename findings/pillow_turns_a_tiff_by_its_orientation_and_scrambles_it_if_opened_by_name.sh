#!/usr/bin/env bash
# Guess: a picture is the same whether Pillow opens a file by its name or by an open file object.
#
# Pillow 13.0.0 applies the orientation of a TIFF while it loads the pixels. For an uncompressed TIFF that is opened by
# name, and whose orientation exchanges height and width (5 to 8), the pixels come in the wrong order and in the shape
# that they are stored in. From a file object the same bytes come out right, and so does a compressed TIFF by name.
#
# Seen on 2026-11-28, with Python 3.11 on Linux, of 3 rows 0 1 2 3, 4 5 6 7, 8 9 10 11 to be turned by a quarter:
#
#> by name                   (3, 4) [[9, 6, 3, 0], [10, 7, 4, 1], [11, 8, 5, 2]]
#> by file object            (4, 3) [[8, 4, 0], [9, 5, 1], [10, 6, 2], [11, 7, 3]]
#> by name, with Deflate     (4, 3) [[8, 4, 0], [9, 5, 1], [10, 6, 2], [11, 7, 3]]
#
# This script installs Pillow and NumPy into a temporary folder, writes the files and reads them. It fails if the output
# is no longer the lines after #>.
set -euo pipefail
expected=$(sed -n 's/^#> //p' "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet Pillow==13.0.0 numpy==2.2.6
cat >"$folder/finding.py" <<'END'
import platform
import sys

import numpy as np
import PIL
from PIL import Image

print(f"Python {platform.python_version()}, Pillow {PIL.__version__}", file=sys.stderr)
stored = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
quarter_turn = {274: 6}  # the tag of the orientation
stored.save("plain.tif", tiffinfo=quarter_turn)
stored.save("deflate.tif", tiffinfo=quarter_turn, compression="tiff_adobe_deflate")


def show(title, file):
    with Image.open(file) as image:
        pixels = np.asarray(image)
    print(f"{title:25} {pixels.shape} {pixels.tolist()}")


show("by name", "plain.tif")
with open("plain.tif", "rb") as file:
    show("by file object", file)
show("by name, with Deflate", "deflate.tif")
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
