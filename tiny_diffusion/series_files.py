"""From files to time series: tables, and folders in GluonTS's layout, those that GluonTS makes among them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from tiny_diffusion.data import HELD_OUT
from tiny_diffusion.frequencies import CHOICES, stamp
from tiny_diffusion.messages import UsageError, downloading, many, shortened
from tiny_diffusion.series import Series, from_series
from tiny_diffusion.table_files import KINDS, READERS
from tiny_diffusion.tables import Table, read_tables
from tiny_diffusion.windows import Group, steps_between, target_and_covariates

PACKED = (".gz", ".bz2", ".xz", ".zip")
OF_TABLES = ("freq", "date_format", "decimal", "covariates")  # flags that say how a table is read
UNUSED = ("feat_static_real", "past_feat_dynamic_real", "feat_dynamic_cat")  # what GluonTS has beside what is learned


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
    """Your own series: `--data_dir` is a table, a folder with one, or a folder in GluonTS's layout."""
    path = Path(config.data_dir)
    if (path / "metadata.json").is_file():
        return gluonts_folder(config.dataset, path, config)
    return from_table(path if path.is_file() else table_in(path), config)


def table_in(folder: Path) -> Path:
    """The one table that lies in a folder; a text beside others is none. Raises UsageError."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in files if file.is_file() and not file.name.startswith(".")]
    kinds = [file.with_suffix("").suffix if file.suffix.lower() in PACKED else file.suffix for file in files]
    found = [file for file, kind in zip(files, kinds) if kind.lower() in READERS]
    found = [file for file in found if file.suffix.lower() != ".txt"] or found
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError(f"--data_dir {folder}: no table, and no folder with metadata.json, train and test; {KINDS}")
    names = ", ".join(file.name for file in found[:5]) + ", ..." * (len(found) > 5)
    raise UsageError(f"--data_dir {folder}: {len(found)} tables ({names}); name one")


def from_table(path: Path, config) -> Series:
    """The series of a table, of each of which the end is held out."""
    covariates = [*dict.fromkeys(config.covariates or [])]
    tables, horizon = read_tables(path, config.freq, config.date_format, covariates, config.decimal)
    length = config.prediction_length or horizon
    if not length:
        raise UsageError("--prediction_length: say how many rows to forecast")
    series = [[group_of(number, table, length, config.test_windows)] for number, table in enumerate(tables)]
    names, categories = [table.name for table in tables], [[] for _ in tables]
    return from_series(config.dataset, series, names, covariates, categories, length, config)


def group_of(number: int, table: Table, length: int, test_windows: int | None) -> Group:
    """One series of a table as a group, whose last windows are forecast. Raises UsageError.

    It begins and ends where its values do, if that is more than a forecast's `length` from where others do.
    """
    known = np.flatnonzero(table.values.notna())
    first, last = known[0] * (known[0] > length), known[-1] + 1
    last = last if len(table.values) - last > length else len(table.values)
    rows = last - first
    windows = test_windows or int(np.clip(HELD_OUT * rows // length, 1, 5))
    begins = [rows - length * i for i in range(windows, 0, -1) if rows - length * i > 0]
    if test_windows and len(begins) < windows:
        raise UsageError(f"--test_windows {windows}: {table.name} has {rows} rows, too few; make it smaller")
    values = table.values.to_numpy(float)[first:last, None]
    seen = table.covariates.to_numpy(np.float32)[first:]
    return Group(number, table.values.index[first], values, seen, min(begins, default=rows), begins)


def gluonts_folder(name: str, root: Path, config) -> Series:
    """A data set in GluonTS's layout: `train`, and in `test` the same series again for each window.

    Series of the test that are not in `train`, by `item_id`, are forecast all the same. Raises UsageError, and
    NotWhole where files are missing or damaged.
    """
    from gluonts.dataset.common import load_datasets

    given = [flag for flag in OF_TABLES if getattr(config, flag)]
    if given:
        raise UsageError(f"--{given[0]}: has no effect on a folder in GluonTS's layout; leave it out")
    length = config.prediction_length or prediction_length_of(root)
    try:
        parts = load_datasets(root, root / "train", root / "test")
        train, tests = list(parts.train), list(parts.test)
        if not (train and tests):
            raise EOFError("no series in it")
        if any(entry["start"] is pd.NaT for entry in (*train, *tests)):
            raise ValueError("a series has no time as its start")
    except Exception as error:  # of several libraries
        raise NotWhole(f"--data_dir {root}: not there or not whole ({shortened(error)})") from error
    names, test_names = names_of(train, tests, root)
    entries, windows = dict(zip(names, train)), {name: [] for name in (*names, *test_names)}
    for test_name, entry in zip(test_names, tests):
        windows[test_name].append(entry)
    try:
        series = [as_groups(i, entries.get(key), windows[key], length) for i, key in enumerate(windows)]
        check_alike([group for groups in series for group in groups])
    except ValueError as error:
        raise UsageError(f"--data_dir {root}: {error}") from error
    tell(root, series, {key for entry in (*train, *tests) for key in entry})
    firsts = [entries.get(key) or windows[key][0] for key in windows]
    categories = [[int(category) for category in entry.get("feat_static_cat", [])] for entry in firsts]
    covariates = [f"feat_dynamic_real_{i}" for i in range(series[0][0].covariates.shape[1])]
    return from_series(name, series, list(windows), covariates, categories, length, config)


def check_alike(groups: list[Group]) -> None:
    """Raise ValueError unless all entries have a target of one dimension, and equally many covariates."""
    if any(group.values.shape[1] > 1 for group in groups):
        raise ValueError("a target has several dimensions; make each an entry of its own")
    numbers = sorted({group.covariates.shape[1] for group in groups})
    if len(numbers) > 1:
        raise ValueError(f"entries have {numbers[0]} to {numbers[-1]} series in feat_dynamic_real; give all alike")


def prediction_length_of(root: Path) -> int:
    """How many steps to forecast, by the metadata of a folder whose frequency there is. Raises UsageError, NotWhole."""
    try:
        metadata = json.loads((root / "metadata.json").read_bytes())
        freq, length = metadata["freq"], metadata.get("prediction_length")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise NotWhole(f"--data_dir {root}: not there or not whole ({shortened(error)})") from error
    try:
        pd.Period("2000-01-01", freq)
    except (ValueError, TypeError) as error:
        told = str(freq)[:99]
        raise UsageError(f"--data_dir {root}: freq {told} in metadata.json; choose one of {CHOICES}") from error
    if length is None:
        raise UsageError("--prediction_length: the data set does not say how many steps to forecast; give it")
    if type(length) is not int or not 1 <= length <= 10**5:
        remedy = "must be a whole number from 1 to 100,000; give --prediction_length"
        raise UsageError(f"--data_dir {root}: prediction_length {str(length)[:99]} in metadata.json {remedy}")
    return length


def tell(root: Path, series: list[list[Group]], keys: set[str]) -> None:
    """Print what was read: how many series, from when to when, what is missing, and which `keys` are not used."""
    groups = [max(groups, key=lambda group: len(group.values)) for groups in series]
    first = min((group.start for group in groups), key=lambda start: start.ordinal)
    last = max((group.start + len(group.values) - 1 for group in groups), key=lambda end: end.ordinal)
    said = [f"{len(groups):,} series, {stamp(first)} to {stamp(last)}, every {first.freqstr}"]
    said.append(f"{many(sum(int(np.isnan(group.values).sum()) for group in groups), 'value')} missing")
    unused = [key for key in UNUSED if key in keys]
    said += [f"{', '.join(unused)} not used"] if unused else []
    print(f"{root}: {'; '.join(said)}")


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
