#!/usr/bin/env bash
# torchaudio 2.11.0: functional.resample with its defaults, from 44,100 to 16,000 Hz, takes 3.7 dB from a tone of
# 7.5 kHz and leaves an alias of a tone of 9 kHz, at 7 kHz and -16.8 dB.
#
# The new rate carries frequencies below 8 kHz. A tone of 7.5 kHz should come through. A tone of 9 kHz should vanish,
# because at 16,000 Hz it cannot be told from 16 - 9 = 7 kHz. The default filter (lowpass_filter_width=6, rolloff=0.99)
# is short, so its slope is wide: it is centred at 7.9 kHz and reaches from below 7 to beyond 9 kHz. A filter with
# lowpass_filter_width=64 has about ten times as many taps, and neither effect.
#
# Seen on 2026-11-28, with Python 3.11 on Linux; each tone lasts ten seconds and has an amplitude of 1 (0 dB):
#
#> by default               1000 Hz becomes 1000 Hz at 0.0 dB
#> by default               7000 Hz becomes 7000 Hz at -1.8 dB
#> by default               7500 Hz becomes 7500 Hz at -3.7 dB
#> by default               9000 Hz becomes 7000 Hz at -16.8 dB
#> lowpass_filter_width=64  7500 Hz becomes 7500 Hz at 0.0 dB
#> lowpass_filter_width=64  9000 Hz becomes 7000 Hz at -87.2 dB
#
# This script installs PyTorch and torchaudio into a temporary folder, resamples and measures. It fails if the output
# is no longer the lines after #>. It needs Python 3.10 or later, and 7 GB of disk: PyTorch brings CUDA along.
set -euo pipefail
expected=$(sed -n 's/^#> //p' "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir torch==2.11.0 torchaudio==2.11.0 numpy==2.2.6
cat >"$folder/finding.py" <<'END'
import platform
import sys

import numpy as np
import torch
import torchaudio

print(
    f"Python {platform.python_version()}, torch {torch.__version__}, torchaudio {torchaudio.__version__}, "
    f"numpy {np.__version__}",
    file=sys.stderr,
)
OLD, NEW, SECONDS = 44100, 16000, 10


def amplitude(sound, frequency, rate):
    """That of the sine of this frequency that fits the middle half of the sound best, by least squares."""
    time = np.arange(len(sound)) / rate
    waves = np.stack([np.sin(2 * np.pi * frequency * time), np.cos(2 * np.pi * frequency * time)], axis=1)
    middle = slice(len(sound) // 4, -len(sound) // 4)
    weights, *_ = np.linalg.lstsq(waves[middle], sound[middle], rcond=None)
    return np.hypot(*weights)


def show(title, frequency, heard, **settings):
    tone = torch.sin(2 * torch.pi * frequency * torch.arange(OLD * SECONDS, dtype=torch.float64) / OLD)
    resampled = torchaudio.functional.resample(tone, OLD, NEW, **settings).numpy()
    decibels = 20 * np.log10(amplitude(resampled, heard, NEW))
    print(f"{title:24} {frequency} Hz becomes {heard} Hz at {round(decibels, 1) + 0.0:.1f} dB")


show("by default", 1000, 1000)
show("by default", 7000, 7000)
show("by default", 7500, 7500)
show("by default", 9000, 7000)
show("lowpass_filter_width=64", 7500, 7500, lowpass_filter_width=64)
show("lowpass_filter_width=64", 9000, 7000, lowpass_filter_width=64)
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
