#!/usr/bin/env bash
# Guess: the first value of a series in a Monash .tsf file is dated with the start_timestamp that the file gives.
#
# sktime 1.2.0 and aeon 1.6.0 make of the word after @frequency one of pandas's that knows only Sundays, first days of
# months and first days of years. A start on another day moves on to the next of these, and the whole series with it: by
# six days for weeks from a Monday, by half a year for years from July. GluonTS 0.17.0 takes the period that the start
# lies in, so it goes back where the others go on, and can be a year apart from them. Nothing is said.
#
# Seen on 2026-11-28, with Python 3.11 on Linux; for GluonTS, the first moment of the period:
#
#> weekly  from Mon 2024-01-01: sktime Sun 2024-01-07, aeon Sun 2024-01-07, GluonTS Mon 2024-01-01
#> weekly  from Thu 2024-01-04: sktime Sun 2024-01-07, aeon Sun 2024-01-07, GluonTS Mon 2024-01-01
#> weekly  from Sun 2024-01-07: sktime Sun 2024-01-07, aeon Sun 2024-01-07, GluonTS Mon 2024-01-01
#> monthly from Mon 2024-01-01: sktime Mon 2024-01-01, aeon Mon 2024-01-01, GluonTS Mon 2024-01-01
#> monthly from Wed 2024-01-31: sktime Thu 2024-02-01, aeon Thu 2024-02-01, GluonTS Mon 2024-01-01
#> yearly  from Sat 2023-07-01: sktime Mon 2024-01-01, aeon Mon 2024-01-01, GluonTS Sun 2023-01-01
#
# This script installs the three into a temporary folder, writes the files and reads them. It fails if the output is no
# longer the lines after #>.
set -euo pipefail
expected=$(sed -n 's/^#> //p' "$0")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet sktime==1.2.0 aeon==1.6.0 gluonts==0.17.0 pandas==2.3.3 numpy==2.2.6
cat >"$folder/finding.py" <<'END'
import importlib.metadata
import platform
import sys
import warnings

import pandas as pd

warnings.simplefilter("ignore")
from aeon.datasets import load_from_tsf_file
from gluonts.dataset.common import ListDataset
from gluonts.dataset.repository._tsf_reader import TSFReader, frequency_converter
from sktime.datasets import load_tsf_to_dataframe

versions = [f"{name} {importlib.metadata.version(name)}" for name in ("sktime", "aeon", "gluonts", "pandas")]
print(f"Python {platform.python_version()},", ", ".join(versions), file=sys.stderr)
HEAD = """@attribute series_name string
@attribute start_timestamp date
@frequency {}
@horizon 1
@missing false
@equallength true
@data
"""


def show(frequency, start):
    with open("one.tsf", "w") as file:
        file.write(HEAD.format(frequency) + f"T1:{start} 00-00-00:1,2,3\n")
    of_sktime, _ = load_tsf_to_dataframe("one.tsf")
    of_aeon, _ = load_from_tsf_file("one.tsf", return_type="pd_multiindex_hier")
    meta, (series,) = TSFReader("one.tsf").read()
    entry = {"start": str(series["start_timestamp"]), "target": series["target"]}
    (of_gluonts,) = ListDataset([entry], frequency_converter(meta.frequency))
    dates = {"sktime": of_sktime.index[0][-1], "aeon": of_aeon.index[0][-1], "GluonTS": of_gluonts["start"].start_time}
    print(f"{frequency:7} from {pd.Timestamp(start):%a %Y-%m-%d}:", end=" ")
    print(", ".join(f"{name} {date:%a %Y-%m-%d}" for name, date in dates.items()))


show("weekly", "2024-01-01")
show("weekly", "2024-01-04")
show("weekly", "2024-01-07")
show("monthly", "2024-01-01")
show("monthly", "2024-01-31")
show("yearly", "2023-07-01")
END
actual=$(cd "$folder" && venv/bin/python finding.py)
echo "$actual"
[ "$actual" = "$expected" ] || { echo "This is no longer what the head of $0 says:"; echo "$expected"; exit 1; } >&2
