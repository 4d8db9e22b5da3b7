#!/usr/bin/env bash
# Guess: pandas reads 1949.25 as a quarter through 1949, or refuses it.
#
# Decimal years are how R and many tables of sunspots or climate write months: 1949.0, 1949.0833 and so on. pandas 2.3.3
# takes one or two decimals for a month where that can be, and for nothing where it cannot: 1949.25 and 1949.75 are both
# 1 January 1949. With three decimals or a zero it refuses.
#
# Seen on 2026-11-28, with Python 3.11 on Linux:
#
#> 1949.0 -> refused
#> 1949.083 -> refused
#> 1949.25 -> 1949-01-01
#> 1949.5 -> 1949-05-01
#> 1949.75 -> 1949-01-01
#> 1949.12 -> 1949-12-01
#
# This script installs pandas into a temporary folder and runs it. It fails if the output is no longer the lines after #>.
set -euo pipefail
expected=$(sed -n 's/^#> //p' "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pandas==2.3.3 numpy==2.2.6
cat >"$folder/finding.py" <<'END'
import platform
import sys
import warnings

import pandas as pd

warnings.simplefilter("ignore")
print(f"Python {platform.python_version()}, pandas {pd.__version__}", file=sys.stderr)
for text in ["1949.0", "1949.083", "1949.25", "1949.5", "1949.75", "1949.12"]:
    try:
        print(f"{text} -> {pd.to_datetime([text])[0].date()}")
    except ValueError:
        print(f"{text} -> refused")
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
