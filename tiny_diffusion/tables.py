"""From files to time series: CSVs, and folders in GluonTS's layout, those that GluonTS makes among them."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from tiny_diffusion.data import HELD_OUT
from tiny_diffusion.messages import UsageError, downloading
from tiny_diffusion.series import Series, from_series
from tiny_diffusion.windows import LARGEST, Group, steps_between, target_and_covariates

MOST_ROWS = 10**7  # of a CSV, missing ones included
FREQUENCIES = "h, 30min, D, B, W, M"
TIMES = {  # what numbers in the column of times stand for: (from, below, pandas' unit or format)
    "years": (1000, 1e4, "%Y"),
    "dates": (1e7, 1e8, "%Y%m%d"),
    "seconds since 1970": (1e8, 1e11, "s"),
    "milliseconds since 1970": (1e11, 1e14, "ms"),
}


class NotWhole(UsageError):
    """A data set of which files are missing or damaged."""


def gluonts(recipe: str, config) -> Series:
    """A data set that GluonTS makes, downloaded to `--data_dir`/gluonts if it is not there or not whole."""
    name, home = f"gluonts:{recipe}", Path(config.data_dir) / "gluonts" / recipe
    try:
        return gluonts_folder(name, home, config)
    except NotWhole as error:
        state = str(error)
    from gluonts.dataset.repository.datasets import dataset_recipes, materialize_dataset

    if recipe not in dataset_recipes:
        known = ", ".join(dataset_recipes)
        raise UsageError(f"{state}, and GluonTS cannot make {recipe}; it makes {known}")
    print(f"{state}: making it")
    partial = home.with_name(f".{recipe}.part")
    shutil.rmtree(partial, ignore_errors=True)
    with downloading(recipe, config.data_dir, f"put it into {home}"):
        made = materialize_dataset(recipe, partial)
    shutil.rmtree(home, ignore_errors=True)
    made.rename(home)
    partial.rmdir()
    return gluonts_folder(name, home, config)


def series(config) -> Series:
    """Your own series: `--data_dir` is a CSV, or a folder in GluonTS's layout."""
    path = Path(config.data_dir)
    if path.is_file():
        return from_csv(path, config)
    if (path / "metadata.json").is_file():
        return gluonts_folder(config.dataset, path, config)
    raise UsageError(f"--data_dir {path}: neither a CSV nor a folder with metadata.json, train and test")


def gluonts_folder(name: str, root: Path, config) -> Series:
    """A data set in GluonTS's layout: `train`, and in `test` the same series again for each window.

    Series of the test that are not in `train`, by `item_id`, are forecast all the same. Raises UsageError, and
    NotWhole where files are missing or damaged.
    """
    from gluonts.dataset.common import load_datasets

    try:
        parts = load_datasets(root, root / "train", root / "test")
        train, tests = list(parts.train), list(parts.test)
        if not (train and tests):
            raise EOFError("no series in it")
    except Exception as error:  # of several libraries
        raise NotWhole(f"--data_dir {root}: not there or not whole ({type(error).__name__}: {error})") from error
    length = config.prediction_length or parts.metadata.prediction_length
    if not length:
        raise UsageError("--prediction_length: the data set does not say how many steps to forecast; give it")
    names, test_names = names_of(train, tests, root)
    entries, windows = dict(zip(names, train)), {name: [] for name in (*names, *test_names)}
    for test_name, entry in zip(test_names, tests):
        windows[test_name].append(entry)
    try:
        series = [as_groups(i, entries.get(key), windows[key], length) for i, key in enumerate(windows)]
    except ValueError as error:
        raise UsageError(f"--data_dir {root}: {error}") from error
    firsts = [entries.get(key) or windows[key][0] for key in windows]
    categories = [[int(category) for category in entry.get("feat_static_cat", [])] for entry in firsts]
    covariates = [f"feat_dynamic_real_{i}" for i in range(series[0][0].covariates.shape[1])]
    return from_series(name, series, list(windows), covariates, categories, length, config)


def names_of(train: list[dict], tests: list[dict], root: Path) -> tuple[list[str], list[str]]:
    """Names of training and test entries, by `item_id`; numbers, where these only count and tests come in turn."""
    names, test_names = ([str(entry.get("item_id", i)) for i, entry in enumerate(part)] for part in (train, tests))
    counted = test_names == [str(i) for i in range(len(tests))] and len(tests) % len(train) == 0
    if not counted and len(set(names)) == len(train) and set(names) & set(test_names):
        return names, test_names
    if len(tests) % len(train):
        raise UsageError(f"--data_dir {root}: {len(tests)} test series, no multiple of {len(train)} training series")
    return tuple([str(i % len(train)) for i in range(len(part))] for part in (train, tests))


def as_groups(number: int, train: dict | None, tests: list[dict], length: int) -> list[Group]:
    """One of GluonTS's series: a group to learn from, of the training entry if any, and one for each forecast.

    They come in the order of their ends; what is learned ends before the first forecast begins. Raises ValueError.
    """
    groups = [Group(number, entry["start"], *target_and_covariates(entry), 0, []) for entry in tests]
    groups = sorted(groups, key=lambda group: group.start + len(group.values))
    whole = groups[-1].values if groups else None
    for i, group in enumerate(groups):
        begin = len(group.values) - length
        if begin < 1:
            raise ValueError(f"a test series has no more than {length} steps; make --prediction_length smaller")
        shared = whole[: len(group.values)]  # one array for all windows, where they go on from one another
        values = shared if np.array_equal(shared, group.values, equal_nan=True) else group.values
        groups[i] = group._replace(values=values, begins=[begin])
    if train is None:
        return groups
    learned = Group(number, train["start"], *target_and_covariates(train), 0, [])
    known = [len(learned.values), *(steps_between(learned.start, g.start + g.begins[0]) for g in groups)]
    return [learned._replace(train_end=max(0, min(known))), *groups]


def from_csv(path: Path, config) -> Series:
    """The first column is the time, each other a series, or one of `--covariates`; of each the end is held out.

    A series begins and ends where its column does, if that is more than a forecast's length from where others do.
    """
    length = config.prediction_length
    if length is None:
        raise UsageError("--prediction_length: say how many rows to forecast")
    frame = evenly_spaced(read_csv(path), path, config)
    unknown = set(config.covariates or []) - set(frame)
    if unknown:
        raise UsageError(f"--covariates {' '.join(unknown)}: not among the columns {', '.join(frame)}")
    covariates = frame[config.covariates or []]
    frame = frame.drop(columns=covariates.columns)
    empty = [column for column in frame if frame[column].isna().all()]
    if empty:
        raise UsageError(f"--data_dir {path}: column {empty[0]} has no values; take it out")
    if not len(frame.columns):
        raise UsageError(f"--covariates {' '.join(covariates)}: no column is left to forecast; name fewer")
    frame = frame[: frame.last_valid_index()]
    series = [column_group(frame, number, covariates, config) for number in range(len(frame.columns))]
    names, categories = [*map(str, frame)], [[] for _ in series]
    return from_series(config.dataset, series, names, list(covariates), categories, length, config)


def column_group(frame: pd.DataFrame, number: int, covariates: pd.DataFrame, config) -> list[Group]:
    """One column as a group, alone in a list. Raises UsageError."""
    column, length = frame.iloc[:, number], config.prediction_length
    known = np.flatnonzero(column.notna())
    first, last = known[0] * (known[0] > length), known[-1] + 1
    last = last if len(frame) - last > length else len(frame)
    rows = last - first
    windows = config.test_windows or int(np.clip(HELD_OUT * rows // length, 1, 5))
    begins = [rows - length * i for i in range(windows, 0, -1) if rows - length * i > 0]
    if config.test_windows and len(begins) < windows:
        raise UsageError(f"--test_windows {windows}: {column.name} has {rows} rows, too few; make it smaller")
    values = column.to_numpy(float)[first:last, None]
    seen = covariates.to_numpy(np.float32)[first:]
    return [Group(number, frame.index[first], values, seen, min(begins, default=rows), begins)]


def read_csv(path: Path) -> pd.DataFrame:
    """Numbers by their time, in the order of time, of a CSV with commas, semicolons or tabs. Raises UsageError."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            header = file.readline()
        separator = max(",;\t", key=header.count)
        frame = pd.read_csv(path, sep=separator, decimal="," if separator == ";" else ".", index_col=False)
    except (OSError, ValueError) as error:
        raise UsageError(f"--data_dir {path}: not a CSV ({error})") from error
    if separator == ";":
        print("read with semicolons between columns, and decimal commas")
    frame = frame.dropna(how="all")
    frame = frame.drop(columns=[name for name in frame if name.startswith("Unnamed: ") and frame[name].isna().all()])
    if frame.shape[1] < 2:
        raise UsageError(f"--data_dir {path}: no series; the first column is the time, all others are numbers")
    stamps = times_of(frame.pop(frame.columns[0]), path)
    for name in frame:
        numbers = pd.to_numeric(frame[name], errors="coerce").astype(float)
        wrong = np.flatnonzero((numbers.isna() & frame[name].notna()) | (numbers.abs() > LARGEST))
        if len(wrong):
            place = f"{frame[name].iloc[wrong[0]]} in column {name}, row {frame.index[wrong[0]] + 2}"
            raise UsageError(f"--data_dir {path}: {place}; must be a number, or empty where it is missing")
        frame[name] = numbers
    return frame.set_index(stamps).sort_index()


def times_of(column: pd.Series, path: Path) -> pd.DatetimeIndex:
    """Dates, in UTC if they have an offset, or numbers that stand for times: see `TIMES`. Raises UsageError."""
    try:
        if not pd.api.types.is_numeric_dtype(column):
            if column.astype(str).str.contains(r"(?:[Zz]|[+-]\d\d:?\d\d)$").any():
                print(f"times with an offset from UTC in column {column.name}: counted in UTC")
            return pd.DatetimeIndex(pd.to_datetime(column, utc=True)).tz_localize(None)
        whole = column.astype("int64")
        fits = [kind for kind, (low, high, _) in TIMES.items() if whole.between(low, high, inclusive="left").all()]
        if not (whole == column).all() or not fits:
            raise ValueError("numbers that are neither years nor seconds since 1970")
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"--data_dir {path}: {error}; the first column must be dates, all others numbers") from error
    print(f"times in column {column.name} read as {fits[0]}")
    _, _, form = TIMES[fits[0]]
    if "%" in form:
        return pd.DatetimeIndex(pd.to_datetime(whole.astype(str), format=form))
    return pd.DatetimeIndex(pd.to_datetime(whole, unit=form))


def evenly_spaced(frame: pd.DataFrame, path: Path, config) -> pd.DataFrame:
    """By periods of `--freq`, one row each: missing ones are empty, and several of a period become their mean."""
    if frame.index.has_duplicates:
        time = frame.index[frame.index.duplicated()][0]
        raise UsageError(f"--data_dir {path}: several rows for {time}; leave one")
    freq = config.freq or frame.index.inferred_freq
    if freq is None:
        raise UsageError(f"--freq: the time between rows cannot be told; give it: {FREQUENCIES}")
    try:
        periods = frame.index.to_period(config.freq)
    except ValueError as error:
        raise UsageError(f"--freq {freq}: no such time between rows; choose one of {FREQUENCIES}") from error
    steps = (periods.asi8 - periods.asi8[0]) // periods.freq.n
    rows = int(steps[-1]) + 1
    if rows > min(MOST_ROWS, 1000 + 100 * len(frame)):
        span = f"{len(frame)} rows from {frame.index[0]} to {frame.index[-1]} would make {rows:,}"
        raise UsageError(f"--freq {freq}: {span}; correct the times, or choose a longer --freq")
    if len(np.unique(steps)) < len(steps):
        print(f"--freq {freq}: {len(steps)} rows become the means of {len(np.unique(steps))}")
    whole = frame.groupby(steps).mean().reindex(range(rows))
    whole.index = pd.period_range(periods[0], periods=rows)
    missing = np.setdiff1d(np.arange(rows), steps)
    if len(missing):
        print(f"{len(missing)} of {rows} rows are missing, the first {whole.index[missing[0]]}")
    return whole
