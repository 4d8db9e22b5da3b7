"""The data sets of time series: tables of one's own, and folders in GluonTS's layout, also those that it makes."""

import shutil
from pathlib import Path

import numpy as np

from tiny_diffusion.data import HELD_OUT
from tiny_diffusion.messages import UsageError, downloading
from tiny_diffusion.series import Series, from_series
from tiny_diffusion.table_files import READERS
from tiny_diffusion.tables import Table, read_tables
from tiny_diffusion.windows import Group, steps_between, target_and_covariates


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
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if set(file.suffixes) & ({*READERS} - {".txt"}))
        if len(found) != 1:
            names = ", ".join(file.name for file in found[:10]) or "none"
            raise UsageError(
                f"--data_dir {path}: neither metadata.json, train and test, nor one table ({names}); name one"
            )
        path = found[0]
    elif not path.is_file():
        raise UsageError(f"--data_dir {path}: no such file; give a table, or a folder in GluonTS's layout")
    return from_table(path, config)


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
    if not length or length < 1:
        raise UsageError("--prediction_length: the data set does not say how many steps to forecast; give it")
    unused = [name for name in ("feat_static_real", "past_feat_dynamic_real") if name in train[0]]
    if unused:
        print(f"{root}: {' and '.join(unused)} are not used")
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


def from_table(path: Path, config) -> Series:
    """The series of a table, of each of which the end is held out.

    A series begins and ends where its values do, if that is more than a forecast's length from where others do.
    """
    if config.prediction_length is None:
        raise UsageError("--prediction_length: say how many rows to forecast")
    covariates = config.covariates or []
    tables = read_tables(path, config.freq, config.date_format, covariates, config.decimal)
    series = [table_group(table, number, config) for number, table in enumerate(tables)]
    names, categories = [table.name for table in tables], [[] for _ in tables]
    return from_series(config.dataset, series, names, covariates, categories, config.prediction_length, config)


def table_group(table: Table, number: int, config) -> list[Group]:
    """One series of a table as a group, alone in a list. Raises UsageError."""
    values, length = table.values.to_numpy(float), config.prediction_length
    known = np.flatnonzero(np.isfinite(values))
    first, last = known[0] * (known[0] > length), known[-1] + 1
    last = last if len(values) - last > length else len(values)
    rows = last - first
    windows = config.test_windows or int(np.clip(HELD_OUT * rows // length, 1, 5))
    begins = [rows - length * i for i in range(windows, 0, -1) if rows - length * i > 0]
    if config.test_windows and len(begins) < windows:
        raise UsageError(f"--test_windows {windows}: {table.name} has {rows} rows, too few; make it smaller")
    seen = table.covariates.to_numpy(np.float32)[first:]
    start = table.values.index[first]
    return [Group(number, start, values[first:last, None], seen, min(begins, default=rows), begins)]
