#!/usr/bin/env bash
# Guess: a map that adds a column with the width of each picture leaves the pictures as they are.
#
# datasets 5.2.0 stores anew each picture out of a Parquet file that the function looks at, though it returns none. A
# JPEG is compressed again, with Pillow's default quality of 75, and loses detail for good; nothing is said. filter may
# look. So may a map of a folder of files, of which datasets keeps the path. With Image(decode=False) the bytes stay,
# and the function opens them itself.
#
# Seen on 2026-11-28, with Python 3.11 on Linux, of one JPEG of quality 95, by the Parquet file then written:
#
#> read and written            as it was
#> map that does not look      as it was
#> filter by width             as it was
#> map that adds the width     53% of the bytes, pixels changed by 2.2 of 255 on average
#> the same with decode=False  as it was
#> the same from a folder      as it was
#
# This script installs datasets into a temporary folder, writes the files and reads them. It fails if the output is no
# longer the lines after #>.
set -euo pipefail
expected=$(sed -n 's/^#> //p' "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 Pillow==13.0.0 pandas==2.3.3 numpy==2.2.6
cat >"$folder/finding.py" <<'END'
import io
import platform
import sys
from pathlib import Path

import datasets
import numpy as np
import PIL
import pyarrow.parquet
from PIL import Image

versions = f"datasets {datasets.__version__}, Pillow {PIL.__version__}"
print(f"Python {platform.python_version()}, {versions}", file=sys.stderr)
datasets.disable_progress_bars()


def pixels(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(float)


def show(title, data):
    data.to_parquet("written.parquet")
    picture = pyarrow.parquet.read_table("written.parquet")["image"][0].as_py()
    now = picture["bytes"] or Path(picture["path"]).read_bytes()
    change = np.abs(pixels(now) - pixels(jpeg)).mean()
    share = f"{len(now) / len(jpeg):.0%} of the bytes, pixels changed by {change:.1f} of 255 on average"
    print(f"{title:27} {'as it was' if now == jpeg else share}")


def open_and_measure(row):
    return {"width": Image.open(io.BytesIO(row["image"]["bytes"])).width}


y, x = np.mgrid[:128, :128]
waves = [128 + 60 * np.sin((x * x + y * y) / slope) + 60 * np.sin(x * y / slope) for slope in (900, 1100, 1300)]
Path("files").mkdir()
Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8)).save("files/waves.jpg", quality=95)
jpeg = Path("files/waves.jpg").read_bytes()
datasets.Dataset.from_dict({"image": [jpeg]}).cast_column("image", datasets.Image()).to_parquet("read.parquet")
data = datasets.load_dataset("parquet", data_files="read.parquet", split="train")
bare = data.cast_column("image", datasets.Image(decode=False))
files = datasets.load_dataset("imagefolder", data_dir="files", split="train")
show("read and written", data)
show("map that does not look", data.map(lambda row: {"ones": 1}))
show("filter by width", data.filter(lambda row: row["image"].width > 100))
show("map that adds the width", data.map(lambda row: {"width": row["image"].width}))
show("the same with decode=False", bare.map(open_and_measure))
show("the same from a folder", files.map(lambda row: {"width": row["image"].width}))
END
actual=$(cd "$folder" && HF_HOME="$folder" HF_HUB_OFFLINE=1 venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
