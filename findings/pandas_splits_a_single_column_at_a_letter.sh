#!/usr/bin/env bash
# Guess: asked to find the separator of a file that has a single column, pandas finds none and returns one column.
#
# With sep=None, pandas 2.3.3 asks the csv module's Sniffer, who looks at the first line and takes a letter of the column's
# name: "date" becomes "da" and "e", "sales" has three columns. The values become the index or a column of its own, and
# what is left is missing. Nothing is said. With two columns the comma is found.
#
# Seen on 2026-11-28, with Python 3.11 on Linux:
#
#>            da   e
#> 0  2020-01-01 NaN
#> 1  2020-01-02 NaN
#>    Unnamed: 0  ale  Unnamed: 2
#> 0          10  NaN         NaN
#> 1          20  NaN         NaN
#> 2          30  NaN         NaN
#>          date  sales
#> 0  2020-01-01     10
#> 1  2020-01-02     20
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
for text in ["date\n2020-01-01\n2020-01-02\n", "sales\n10\n20\n30\n", "date,sales\n2020-01-01,10\n2020-01-02,20\n"]:
    with open("one.csv", "w") as file:
        file.write(text)
    print(pd.read_csv("one.csv", sep=None, engine="python"))
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
