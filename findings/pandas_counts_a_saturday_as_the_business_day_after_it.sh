#!/usr/bin/env bash
# Guess: a Saturday has no period of business days, so that pandas refuses it, or takes the Friday before.
#
# pandas 2.3.3 turns a Saturday and a Sunday into the period of the Monday after them, without a word. A daily series that
# is taken for one of business days then has three values for each Monday.
#
# Seen on 2026-11-28, with Python 3.11 on Linux:
#
#> Fri 2024-03-01 -> Fri 2024-03-01
#> Sat 2024-03-02 -> Mon 2024-03-04
#> Sun 2024-03-03 -> Mon 2024-03-04
#> Mon 2024-03-04 -> Mon 2024-03-04
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

warnings.simplefilter("ignore", FutureWarning)  # that periods of business days are to go
print(f"Python {platform.python_version()}, pandas {pd.__version__}", file=sys.stderr)
days = pd.date_range("2024-03-01", periods=4)
for day, period in zip(days, days.to_period("B")):
    print(f"{day:%a %Y-%m-%d} -> {period.start_time:%a %Y-%m-%d}")
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
