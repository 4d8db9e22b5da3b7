#!/usr/bin/env bash
# Guess: pandas reads the text that it writes for the period of a week as that week, or refuses it.
#
# pandas 2.3.3 writes a weekly period as its first and last day, 2021-01-04/2021-01-10. pd.Period, which reads the text of
# a month or a quarter back, makes of it the minute 20:21 of the first day. In a CSV file that pandas has written,
# read_csv(parse_dates=True) makes of it 20:21, ten hours behind UTC: -10 is the last day of the week, and becomes the time
# zone. Only with freq="W" it is the week again.
#
# Seen on 2026-11-28, with Python 3.11 on Linux:
#
#> 2021-01 -> 2021-01
#> 2021Q1 -> 2021Q1
#> 2021-01-04/2021-01-10 -> 2021-01-04 20:21
#> 2021-01-11/2021-01-17 -> 2021-01-11 20:21
#> from the CSV file: 2021-01-04 20:21:00-10:00
#> from the CSV file: 2021-01-11 20:21:00-17:00
#> with freq='W': 2021-01-04/2021-01-10
#> with freq='W': 2021-01-11/2021-01-17
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
weeks = pd.period_range("2021-01-04", periods=2, freq="W")
for period in [pd.Period("2021-01", "M"), pd.Period("2021Q1", "Q"), *weeks]:
    print(f"{period} -> {pd.Period(str(period))}")
pd.Series([1.0, 2.0], weeks).to_csv("weeks.csv")
for date in pd.read_csv("weeks.csv", index_col=0, parse_dates=True).index:
    print("from the CSV file:", date)
for text in map(str, weeks):
    print("with freq='W':", pd.Period(text, freq="W"))
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
