#!/usr/bin/env bash
# soundfile 0.14.0 (libsndfile 1.2.2) reads no frame of a WAV whose data chunk says 0 bytes, without an error.
#
# A program that writes a WAV into a pipe does not know the length when it writes the header, and cannot go back to fill
# it in. Some programs leave 0 there, some the largest number. With the largest number, soundfile reads to the end of
# the file. With 0, it returns an empty array; only `extra_info` mentions the bytes after the chunk. There is one
# exception: if the RIFF chunk says 8 bytes, libsndfile assumes that the file was never closed, and reads all of it.
#
# Seen on 2026-11-28, with Python 3.11 on Linux, for one second of a tone, 16,000 frames:
#
#> RIFF says      32036, data says      32000: 16000 frames
#> RIFF says          0, data says          0: 0 frames
#> RIFF says         36, data says          0: 0 frames
#> RIFF says      32036, data says          0: 0 frames
#> RIFF says          8, data says          0: 16000 frames
#> RIFF says 4294967295, data says 4294967295: 16000 frames
#
# This script installs soundfile into a temporary folder, writes the files and reads them. It fails if the output
# is no longer the lines after #>. It needs Python 3.10 or later.
set -euo pipefail
expected=$(sed -n 's/^#> //p' "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet soundfile==0.14.0 numpy==2.2.6
cat >"$folder/finding.py" <<'END'
import math
import platform
import struct
import sys

import numpy
import soundfile

print(
    f"Python {platform.python_version()}, soundfile {soundfile.__version__}, "
    f"libsndfile {soundfile.__libsndfile_version__}, numpy {numpy.__version__}",
    file=sys.stderr,
)
RATE = 16000
SOUND = struct.pack(f"<{RATE}h", *(round(8000 * math.sin(2 * math.pi * 440 * i / RATE)) for i in range(RATE)))
FORMAT = struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16)  # PCM, one channel of 16 bits


def show(riff_size, data_size):
    with open("tone.wav", "wb") as file:
        file.write(b"RIFF" + struct.pack("<I", riff_size) + b"WAVE")
        file.write(b"fmt " + struct.pack("<I", len(FORMAT)) + FORMAT)
        file.write(b"data" + struct.pack("<I", data_size) + SOUND)
    samples, _ = soundfile.read("tone.wav")
    print(f"RIFF says {riff_size:10}, data says {data_size:10}: {len(samples)} frames")


show(36 + len(SOUND), len(SOUND))
show(0, 0)
show(36, 0)
show(36 + len(SOUND), 0)
show(8, 0)
show(0xFFFFFFFF, 0xFFFFFFFF)
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
