#!/usr/bin/env bash
# Guess: GluonTS takes seven days for the season of daily data, and 52 weeks for that of weekly data.
#
# GluonTS 0.17.0 has a season of 1 for both, also for 2 days; for business days it is a week. So the seasonal naive
# forecast of daily data repeats the last value, and MASE divides by the mean change from one day to the next. A multiple
# that does not divide the base season, as 5 hours, has none either.
#
# Seen on 2026-11-28, with Python 3.11 on Linux:
#
#> ME: 12
#> W: 1
#> D: 1
#> 2D: 1
#> B: 5
#> h: 24
#> 2h: 12
#> 5h: 1
#> four weeks of [1, 2, 3, 4, 5, 0, 0] go on with [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
#
# This script installs gluonts into a temporary folder and runs it. It fails if the output is no longer the lines after #>.
set -euo pipefail
expected=$(sed -n 's/^#> //p' "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gluonts==0.17.0 packaging==25.0 pandas==2.3.3 numpy==2.2.6
cat >"$folder/finding.py" <<'END'
import importlib.metadata
import platform
import sys
import warnings

import numpy as np
import pandas as pd
from gluonts.model.seasonal_naive import SeasonalNaivePredictor
from gluonts.time_feature import get_seasonality

warnings.simplefilter("ignore")
print(f"Python {platform.python_version()}, gluonts {importlib.metadata.version('gluonts')}", file=sys.stderr)
for freq in ["ME", "W", "D", "2D", "B", "h", "2h", "5h"]:
    print(f"{freq}: {get_seasonality(freq)}")
week = [1, 2, 3, 4, 5, 0, 0]
entry = {"start": pd.Period("2024-01-01", "D"), "target": np.tile(week, 4).astype(float)}
predictor = SeasonalNaivePredictor(prediction_length=7, season_length=get_seasonality("D"))
print("four weeks of", week, "go on with", next(predictor.predict([entry])).mean.tolist())
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
