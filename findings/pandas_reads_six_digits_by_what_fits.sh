#!/usr/bin/env bash
# Guess: pandas reads six digits as year, month and day, as it reads eight.
#
# pandas 2.3.3 takes the first two digits for the day, where they can be one, and the last two for the year: the days after
# 15 January 2021 become 21 January 2015, 21 January 2016 and so on. From 32 on, the first two are the year. With
# format="%y%m%d" they always are.
#
# Seen on 2026-11-28, with Python 3.11 on Linux:
#
#> 20210115 -> 2021-01-15
#>   210115 -> 2015-01-21
#>   210116 -> 2016-01-21
#>   320101 -> 2032-01-01
#>   210115 -> 2021-01-15 with format='%y%m%d'
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
for text in ["20210115", "210115", "210116", "320101"]:
    print(f"{text:>8} -> {pd.to_datetime(text).date()}")
print(f"  210115 -> {pd.to_datetime('210115', format='%y%m%d').date()} with format='%y%m%d'")
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
