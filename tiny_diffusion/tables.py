"""Tables as people have them, read into regular time series: a reader for each kind of file, then one common path.

A reader gives a frame whose index counts rows as the file does, its header being row 1, and whose cells are text,
numbers or times. What the columns are, which are times, ids and numbers, is decided for each column as a whole.
"""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from tiny_diffusion.frequencies import (
    after_midnight,
    freq_of,
    in_winter_time,
    placed,
    shown,
    stamp,
    step_of,
    tell_shift,
    tell_weekdays,
)
from tiny_diffusion.messages import UsageError, many
from tiny_diffusion.numerals import as_text, numbers_of
from tiny_diffusion.table_files import ID_NAME, TARGET_NAMES, TIME_NAME, frame_of, some, unrolled, upright
from tiny_diffusion.times import NUMBER, by_format, looks_like_times, month_number, on_the_clock, parse, written_as

MOST_ROWS = 10**7  # of a table, missing ones included
PARTS = {  # columns that make a time together, by their names
    "year": r"year|yr|yyyy|jahr|ann[ée]e|a[ñn]o|anno|jaar",
    "quarter": r"quarter|qtr|q|quartal|trimestre",
    "month": r"month|mon|mm|mo|monat|mois|m[eê]s|mese|maand",
    "period": r"period",
    "week": r"week|iso_?week|wk|woche|kw|semaine|semana",
    "day": r"day|dd|dy|tag|jour|d[ií]a|giorno|day of month",
    "hour": r"hour|hr|hh|stunde|heure|hora|hour[_ ]ending|he|hour[_ ]of[_ ]day|time|hhmm|uhrzeit",
    "minute": r"minute|min|mn",
}


class Table(NamedTuple):
    """A regular series by periods, NaN where missing, and its covariates, which may go on after it ends."""

    name: str
    values: pd.Series
    covariates: pd.DataFrame


def read_tables(
    path: Path,
    freq: str | None = None,
    date_format: str | None = None,
    covariates: Sequence[str] = (),
    decimal: str | None = None,
) -> tuple[list[Table], int | None]:
    """The series of a file, all of one frequency, and how far to forecast them if it tells; prints what was read.

    `freq`, `date_format`, `covariates` and `decimal` are the flags of those names. Raises UsageError.
    """
    notes = []
    try:
        frame = frame_of(path, decimal, notes).dropna(how="all")
        tables = tables_of(frame, freq, date_format, list(covariates), decimal, notes)
    except UsageError as error:
        message = re.sub(r"(\S{60})\S{30,}", r"\1...", " ".join(str(error).split()))
        raise UsageError(message if message.startswith("--") else f"--data_dir {path}: {message}") from error
    print(f"{path}: {'; '.join(notes)}")
    return tables, frame.attrs.get("horizon")


def tables_of(frame: pd.DataFrame, freq, date_format, covariates, decimal, notes) -> list[Table]:
    """The series of a frame, as `read_tables` describes them."""
    attrs = frame.attrs
    frame = upright(unrolled(frame, freq or attrs.get("freq"), notes), notes)
    frame.attrs |= attrs
    times, frame = with_times(frame, date_format, notes)
    unknown = [name for name in covariates if name not in frame]
    if unknown:
        raise UsageError(f"--covariates {' '.join(unknown)}: not among the columns {', '.join(frame)}")
    keys = id_columns(frame, times, covariates)
    frame.attrs |= attrs
    numbers = numbers_of(frame.drop(columns=keys), decimal, notes)
    codes, names = groups_of(frame[keys])
    missing = [name for name in covariates if name not in numbers]
    if missing:
        raise UsageError(f"--covariates {' '.join(missing)}: not a column of numbers; leave it out")
    values = chosen(numbers.drop(columns=covariates), keys, covariates, notes)
    times = in_order(times, codes, notes)
    order = np.lexsort((times.asi8, codes))
    bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
    parts = [(name, order[a:b]) for name, a, b in zip(names, bounds, bounds[1:])]
    longest = max(parts, key=lambda part: len(part[1]))[1]
    told = freq or attrs.get("freq")
    check_unique(times, parts)
    freq = freq_of(told, times[longest]) if told else step_of(times[longest])
    tell_shift(times[longest], freq, bool(told), notes)
    tell_weekdays(times, freq, notes)
    cells = np.column_stack([values.to_numpy(float), numbers[covariates].to_numpy(float)])
    tables, counts = [], dict.fromkeys(("rows", "missing", "closer", "means", "empty", "nan"), 0)
    for name, rows in parts:
        found = on_periods(name, times[rows], cells[rows], freq, bool(told), counts)
        tables += tables_from(name, [*map(str, values)], *found, covariates, counts)
    if not tables:
        raise UsageError("no series: no column has a number")
    notes[:0] = account(tables, counts)
    return tables


def with_times(frame: pd.DataFrame, date_format: str | None, notes: list[str]) -> tuple[pd.DatetimeIndex, pd.DataFrame]:
    """The time of each row, and the frame without the columns that told it and without rows below the last time."""
    name, text, used = time_column(frame, date_format, notes)
    if text is None:
        column = frame[name]
        local = column.dt.tz_localize(None)
        offsets = np.full(len(frame), np.nan)
        if column.dt.tz is not None:
            offsets = ((local - column.dt.tz_convert(None)) / pd.Timedelta("1min")).to_numpy()
        known = column.notna().to_numpy()
        times = on_the_clock(pd.DatetimeIndex(local[known]), offsets[known], name, notes)
    else:
        known = (text.notna() & (text != "")).to_numpy()
        times = parse(text[known].rename(name), None if " and " in name else date_format, notes)
        known[known] = ~times.isna()
        times = times[~times.isna()]
    last = np.flatnonzero(known)[-1]
    if not known[: last + 1].all():
        row = frame.index[np.flatnonzero(~known)[0]]
        cell = "nothing" if text is None or pd.isna(text[row]) or not text[row] else text[row]
        raise UsageError(f"row {row} has {cell} in column {name}, where a time must be; correct it or take it out")
    if last + 1 < len(frame):
        cells = [str(cell) for cell in frame.iloc[last + 1] if not pd.isna(cell) and cell != ""]
        below = len(frame) - last - 1
        notes.append(f"{many(below, 'row')} below the last time left out ({' '.join(cells[:3])[:40]})")
    return after_midnight(times, notes), frame[known].drop(columns=used)


def time_column(
    frame: pd.DataFrame, date_format: str | None, notes: list[str]
) -> tuple[str, pd.Series | None, list[str]]:
    """Name and text (None where it has times) of the column of times, and all that it takes. Raises UsageError."""
    counter = counts_rows(frame)
    timed = [name for name in frame if pd.api.types.is_datetime64_any_dtype(frame[name])]
    candidates = []
    for place, name in enumerate(frame):
        cells = some(frame[name])
        plain = sum(bool(re.fullmatch(NUMBER, cell)) for cell in cells) > 0.5 * len(cells)
        named, is_id = bool(TIME_NAME.search(name)), bool(ID_NAME.fullmatch(name))
        able = not is_id and name != counter and (named or place == (counter is not None) or not plain)
        if written_as(cells, date_format) if date_format else able and looks_like_times(cells, plain, 0.6):
            candidates.append((plain and not (named and place == 0), not named, -len(set(cells)), place, name))
    if date_format and not candidates and not timed:
        cell = f"{next(iter(some(frame.iloc[:, 0])), 'nothing')} in column {frame.columns[0]}"
        raise UsageError(f"--date_format {date_format}: no column is written so, such as {cell}; correct it")
    if timed:
        used = [max(timed, key=lambda name: frame[name].nunique())]
    elif candidates:
        used = [min(candidates)[-1]]
    else:
        name = next((name for name in frame if TIME_NAME.search(name)), frame.columns[0])
        numbers = as_text(frame[name]).str.fullmatch(r"-?[\d.]*").all()
        kind = "numbers that are neither years nor seconds since 1970" if numbers else "no times"
        remedy = "one column must have dates (--date_format tells rare ones), others numbers"
        raise UsageError(f"column {name} has {kind}; {remedy}")
    if counter:
        notes.append(f"{counter} counts the rows: left out")
    gone = [counter] if counter else []
    together = from_parts(frame, used[0]) or with_clock(frame, used[0], date_format)
    if together:
        used, text = together
        return " and ".join(used), text, used + gone
    column = frame[used[0]]
    text = None if timed else column if pd.api.types.infer_dtype(column) == "string" else as_text(column)
    return used[0], text, used + gone


def counts_rows(frame: pd.DataFrame) -> str | None:
    """The first column, if it only counts the rows."""
    start = as_text(frame[frame.columns[0]][:2])
    if [*start] not in (["0", "1"], ["1", "2"]):
        return None
    start, cells = start.iloc[0], as_text(frame[frame.columns[0]])
    counted = [*cells] == [*map(str, range(int(start), int(start) + len(cells)))]
    return frame.columns[0] if counted and frame.shape[1] > 2 else None


def part_columns(frame: pd.DataFrame) -> dict[str, str]:
    """Columns that are parts of a time, by which part they are."""
    return {part: name for name in frame for part, names in PARTS.items() if re.fullmatch(names, name.lower())}


def from_parts(frame: pd.DataFrame, name: str) -> tuple[list[str], pd.Series] | None:
    """Columns and text of times told by a year and its quarter, month, week, day, hour; None where there are none."""
    parts = part_columns(frame)
    finer = next((part for part in ("quarter", "month", "period", "week") if part in parts), None)
    if finer is None or parts.get("year") != name:
        return None
    text = as_text(frame[name])
    if text[text != ""].str.fullmatch(r"\d{4}").mean() < 0.6:
        return None
    used, number = [name, parts[finer]], as_text(frame[parts[finer]])
    if finer in ("quarter", "week"):
        digits = number.str.extract(r"(\d+)")[0].fillna("")
        text = text + {"quarter": " Q", "week": "-W"}[finer] + digits
    else:
        between = (
            " " if finer == "period" or not number.str.fullmatch(r"\d*").all() else "-" if "day" in parts else " M"
        )
        text = text + between + number
    if finer == "month" and "day" in parts:
        used, text = [*used, parts["day"]], text + ("-" if "-" in text.iloc[0] else " ") + as_text(frame[parts["day"]])
        for part, before in (("hour", " "), ("minute", ":")):
            if part in parts:
                used, text = [*used, parts[part]], text + before + as_text(frame[parts[part]]).str.zfill(2)
    return used, text.where(as_text(frame[name]) != "", "")


def with_clock(frame: pd.DataFrame, name: str, date_format: str | None) -> tuple[list[str], pd.Series] | None:
    """Columns and text of times told by a date and, in another column, a time of day or an hour; None without one."""
    if ":" in "".join(some(frame[name])).replace("00:00:00", ""):
        return None
    hour = part_columns(frame).get("hour")
    able = [other for other in frame if other != name and frame[other].dtype == object]
    if not (hour or able):
        return None
    text = as_text(frame[name]).str.removesuffix(" 00:00:00")
    if date_format:
        days = pd.Series(by_format(text.reset_index(drop=True), date_format)[0], text.index)
        text = days.dt.strftime("%Y-%m-%d").where(days.notna(), text)
    for other in able:
        clock = as_text(frame[other])
        if clock[text != ""].str.fullmatch(r"\d{1,2}:\d\d(?::\d\d(?:\.\d+)?)?(?: ?[AaPp]\.?[Mm]\.?)?").mean() > 0.9:
            return [name, other], (text + " " + clock).where(text != "", "")
    hours = as_text(frame[hour]) if hour else None
    if hour and text.duplicated().any() and hours[text != ""].str.fullmatch(r"\d{1,2}|\d{1,2}[0-5]\d").all():
        hours = hours.str.zfill(4) if hours.str.len().max() > 2 else hours.str.zfill(2) + ":00"
        return [name, hour], (text + " " + hours).where(text != "", "")
    return None


def id_columns(frame: pd.DataFrame, times: pd.DatetimeIndex, covariates: list[str]) -> list[str]:
    """The columns that tell which series a row belongs to, none where each column is a series. Raises UsageError."""
    named = [name for name in frame if ID_NAME.fullmatch(name) and 2 * frame[name].nunique() <= len(frame)]
    several = 0.0 if times.is_unique else times.duplicated(keep=False).mean()
    if not several and not named and not times.is_monotonic_increasing and not times.is_monotonic_decreasing:
        return in_turn(frame, times)
    if not several:
        return named[:1]
    texts = {name: as_text(frame[name]) for name in frame if name not in covariates}
    words = [name for name in texts if name not in named and not texts[name].str.fullmatch(r"[-+\d.,%]*").all()]
    words = [name for name in words if np.isnan([*map(month_number, texts[name].unique())]).any()]
    wholes = [name for name in texts if name not in named + words and texts[name].str.fullmatch(r"\d+").all()]
    wholes = [name for name in wholes if may_be_id(name, texts[name])]
    able = [*named, *words, *wholes] if several > 0.3 or named else []
    able = [name for name in able if (texts[name] != "").all() and 1 < 2 * texts[name].nunique() <= len(frame)]
    codes = {name: pd.factorize(texts[name])[0] for name in able}
    for number in (1, 2, 3):
        for keys in itertools.combinations(able, number):
            rows = pd.DataFrame({"time": times, **{key: codes[key] for key in keys}})
            if len(keys) < frame.shape[1] and not rows.duplicated().any():
                return [name for name in frame if name in keys]
    return named[:1]


def may_be_id(name: str, text: pd.Series) -> bool:
    """Whether whole numbers may tell series apart; those of all hours or months rather belong to a time."""
    found = text.unique()
    parts = [set(map(str, range(low, high))) for low, high in ((0, 24), (1, 25), (1, 13))]
    able = not name.startswith("column ") and name.lower() not in TARGET_NAMES and 3 * len(found) <= len(text)
    return able and (set(found) not in parts or bool(re.search(r"(?i)id|no|nr|num|store|item|shop|product|sku", name)))


def in_turn(frame: pd.DataFrame, times: pd.DatetimeIndex) -> list[str]:
    """The column of text, if there is one, for each value of which times go on, though in all they begin anew."""
    for name in frame.select_dtypes(object):
        parts = pd.Series(times).groupby(as_text(frame[name]).to_numpy())
        if parts.ngroups > 1 and parts.is_monotonic_increasing.all() and parts.size().min() > 2:
            return [name]
    return []


def groups_of(keys: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """The number of each row's series, and the names of the series by these numbers."""
    if not len(keys.columns):
        return np.zeros(len(keys), int), [""]
    names = keys.apply(as_text).agg("/".join, axis=1) if keys.shape[1] > 1 else as_text(keys.iloc[:, 0])
    codes, found = pd.factorize(names)
    return codes, [*found]


def chosen(numbers: pd.DataFrame, keys: list[str], covariates: list[str], notes: list[str]) -> pd.DataFrame:
    """The columns to forecast: all that have a number, or of a long form the target, if one is called so."""
    empty = [name for name in numbers if numbers[name].isna().all()]
    if empty:
        notes.append(f"{', '.join(empty[:5])} left out, without a number")
    numbers = numbers.drop(columns=empty)
    target = [name for name in numbers if name.lower() in TARGET_NAMES][:1]
    if keys and target and numbers.shape[1] > 1:
        others = ", ".join(name for name in numbers if name not in target)
        notes.append(f"{target[0]} is forecast, {others} left out (--covariates takes what is known ahead)")
        return numbers[target]
    if not len(numbers.columns):
        named = f"--covariates {' '.join(covariates)}: no column is left to forecast; name fewer"
        raise UsageError(named if covariates else "no series: no column but that of the times has numbers")
    return numbers


def in_order(times: pd.DatetimeIndex, codes: np.ndarray, notes: list[str]) -> pd.DatetimeIndex:
    """Times in winter time where those of a series come twice because the clock goes back."""
    if times.is_unique:
        return times
    twice, said = pd.DataFrame({"code": codes, "time": times}).duplicated().to_numpy(), []
    for code in np.unique(codes[twice]):
        rows = codes == code
        times = times.where(~rows, in_winter_time(times[rows], said)[np.cumsum(rows) - 1])
    notes += sorted(set(said))
    return times


def check_unique(times: pd.DatetimeIndex, parts: list[tuple[str, np.ndarray]]) -> None:
    """Raise UsageError if a series has several rows for a time."""
    for name, rows in parts:
        again = times[rows].duplicated()
        if again.any():
            whose = f" of {name}" if name else ""
            remedy = "leave one, or name a column hour or id that tells them apart"
            raise UsageError(f"several rows for {shown(times[rows][again][0])}{whose}; {remedy}")


def on_periods(name: str, times, cells: np.ndarray, freq: str, told: bool, counts: dict):
    """Periods without a gap, (periods, columns) cells of the rows in them, and which periods have a row."""
    first, places = placed(times, freq, told)
    length = int(places[-1]) + 1
    if length > min(MOST_ROWS, 1000 + 100 * len(times)):
        span = f"{len(times)} rows from {shown(times[0])} to {shown(times[-1])} would make {length:,}"
        raise UsageError(f"--freq {freq}: {span}; correct the times, or choose a longer --freq")
    if (np.diff(places) == 0).any():
        if not told:
            closer = f"{name or 'the file'} has rows closer together than {freq}"
            raise UsageError(f"--freq: {closer}; give one for all series")
        counts["closer"] += len(places)
        cells = pd.DataFrame(cells).groupby(places).mean().to_numpy()
        places = np.unique(places)
        counts["means"] += len(places)
    whole, present = np.full((length, cells.shape[1]), np.nan), np.zeros(length, bool)
    whole[places], present[places] = cells, True
    return pd.period_range(first, periods=length), whole, present


def tables_from(name, labels, periods, cells: np.ndarray, present, covariates: list[str], counts: dict) -> list[Table]:
    """A table for each label, a column of cells, each from the first to the last number: of all, if they are a frame.

    The other columns of cells are covariates, and go on to the end. What is missing is counted.
    """
    known = cells[:, len(labels) :]
    tables = []
    for group in [[place] for place in range(len(labels))] if name else [[*range(len(labels))]]:
        rows = np.flatnonzero(~np.isnan(cells[:, group]).all(1))
        if not len(rows):
            counts["empty"] += 1
            continue
        inside, ahead = slice(rows[0], rows[-1] + 1), slice(rows[0], None)
        absent = np.flatnonzero(~present[inside])
        if len(absent):
            counts.setdefault("first", periods[rows[0] + absent[0]])
        counts["missing"] += len(absent)
        counts["rows"] += rows[-1] + 1 - rows[0]
        counts["nan"] += int(np.isnan(cells[inside][:, group][present[inside]]).sum())
        frame = pd.DataFrame(known[ahead], periods[ahead], covariates)
        for place in group:
            label = f"{name} {labels[place]}" if name and len(labels) > 1 else name or labels[place]
            tables.append(Table(label, pd.Series(cells[inside, place], periods[inside], name=label), frame))
    return tables


def account(tables: list[Table], counts: dict) -> list[str]:
    """What was read, in words: how many series and rows, from when to when, the step, and what is missing."""
    lengths = [len(table.values) for table in tables]
    rows = f"{min(lengths):,}" if min(lengths) == max(lengths) else f"{min(lengths):,} to {max(lengths):,}"
    first = min((table.values.index[0] for table in tables), key=lambda period: period.ordinal)
    last = max((table.values.index[-1] for table in tables), key=lambda period: period.ordinal)
    said = [f"{len(tables):,} series of {rows} rows, {stamp(first)} to {stamp(last)}, every {first.freqstr}"]
    if counts["closer"]:
        said.append(f"{counts['closer']} rows become the means of {counts['means']}")
    if counts["missing"]:
        are = "is" if counts["missing"] == 1 else "are"
        said.append(f"{counts['missing']} of {counts['rows']} rows {are} missing, the first {stamp(counts['first'])}")
    if counts["nan"]:
        said.append(f"{many(counts['nan'], 'cell')} without a number")
    if counts["empty"]:
        said.append(f"{counts['empty']} series without a number left out")
    return said
