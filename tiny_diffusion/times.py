"""Times as people write them: one format for a whole column, the step between rows, and the periods they become.

A format is never chosen row by row. Where several fit a column, the one that makes its steps even is taken; where
that does not tell, the user is asked for `--date_format`.
"""

import contextlib
import re
import unicodedata
from datetime import datetime

import numpy as np
import pandas as pd

from tiny_diffusion.frequencies import in_microseconds, placed, step_of
from tiny_diffusion.messages import UsageError

MONTHS = "jan ene gen jän|feb fev fév|mar mrz maa mrt mae mär|apr avr abr|may mai mei mag maj|jun juin giu|jul juil lug"
MONTHS = f"{MONTHS}|aug aou ago aoû|sep set|oct okt out ott|nov|dec dez dic déc".split("|")
MONTHS = {prefix: number for number, names in enumerate(MONTHS, 1) for prefix in names.split()}
DAY_US = 86_400_000_000  # a day in microseconds
WEEKDAY = r"(?:(?:mon|tue|wed|thu|fri|sat|sun|mo|di|mi|do|fr|sa|so|lun|mar|mer|jeu|ven|sam|dim)[^\W\d_]*[.,]*\s+)?"
ZONE = r"(?:\s*(?P<zone>z|utc|gmt|[+-]\d\d(?::?\d\d)?))?(?:\[[\w/+-]+\])?"
CLOCK = r"(?:(?:\s*[t,:]\s*|\s+|-)(?P<H>\d{1,2})(?:[:h.]?(?P<M>\d\d)(?:[:.]?(?P<S>\d\d)(?:[.,](?P<f>\d{1,9}))?)?)?"
CLOCK += rf"\s*h?\s*(?P<half>[ap]\.?m\.?)?{ZONE})?"
NAME = rf"(?P<name>(?:{'|'.join(MONTHS)})[^\W\d_]{{0,7}})\.?"
YEAR = r"(?P<y>\d{4}|\d\d)"
TRIPLE = rf"{WEEKDAY}(?P<a>\d{{4}}|\d{{1,2}})(?P<separator>\s?[-/._ ]\s?)(?P<b>\d{{1,2}})(?P=separator)"
TRIPLE += rf"(?P<c>\d{{4}}|\d{{1,2}})\.?{CLOCK}(?:(?:\s+[-–]\s+|/)(?P<until>\d.*))?"
AROUND = rf"{WEEKDAY}(?P<a>\d{{4}}|\d{{1,2}})(?:st|nd|rd|th|\.)?[-/., ]*(?:de )?{NAME}[-/., ]*(?:de )?"
AROUND += rf"(?P<c>\d{{4}}|\d\d){CLOCK}"
NAMED = rf"{WEEKDAY}{NAME}[-/. ]*(?P<d>\d{{1,2}})(?:st|nd|rd|th)?[-/., ]+{YEAR}{CLOCK}"
COMPACT = r"(?P<y>(?:1[5-9]|2[01])\d\d)(?P<m>\d\d)(?P<d>\d\d)(?:\s?|t)"
COMPACT += rf"(?:(?P<H>\d\d):?(?P<M>\d\d)?:?(?P<S>\d\d)?)?{ZONE}"
SIX, EIGHT = r"(?P<a>\d\d)(?P<b>\d\d)(?P<c>\d\d)", rf"(?P<a>\d\d)(?P<b>\d\d)(?P<c>\d{{4}}){CLOCK}"
QUARTER = r"(?:q|t|k|qtr|quarter|quartal|trimestre)\.?"
SHAPES = [  # (rank: a shape counts where none of a lower rank fits, what is said, order of a, b and c, expression)
    (0, "fiscal years, by their first", "", r"(?P<y>\d{4})[-/](?P<next>\d{4}|\d\d)"),
    (1, "year, month, day", "ymd", TRIPLE),
    (1, "day, month, year", "dmy", TRIPLE),
    (1, "month, day, year", "mdy", TRIPLE),
    (1, "year, month, day", "", rf"(?P<y>\d{{4}})[年년]\s*(?P<m>\d{{1,2}})[月월]\s*(?:(?P<d>\d{{1,2}})[日일])?{CLOCK}"),
    (1, "day, name of the month, year", "d-y", AROUND),
    (1, "name of the month, day, year", "", NAMED),
    (1, "months", "", rf"{NAME}[-/.,' ]*(?:de )?{YEAR}"),
    (1, "days without a year", "", rf"{NAME}[-/. ]+(?P<d>\d{{1,2}})"),
    (1, "months", "", rf"(?P<y>\d{{4}})[-/., ]*{NAME}"),
    (1, "year, name of the month, day", "", rf"(?P<y>\d{{4}})[-/., ]*{NAME}[-/., ]*(?P<d>\d{{1,2}}){CLOCK}"),
    (1, "months", "", r"(?P<y>\d{4})(?:\s?[-/:._ ]\s?|\s*[m]\s*)(?P<m>\d{1,2})"),
    (1, "months", "", r"(?P<m>\d{1,2})\s?[-/:._ ]\s?(?P<y>\d{4})"),
    (1, "months", "", r"(?P<y>(?:1[5-9]|2[01])\d\d)(?P<m>\d\d)"),
    (1, "quarters", "", rf"(?P<y>\d{{4}})\s*[-/:._ ]?\s*{QUARTER}\s*(?P<q>[1-4])"),
    (1, "quarters", "", rf"{QUARTER}\s*(?P<q>[1-4])[-/:._,' ]*{YEAR}"),
    (1, "quarters", "", rf"(?P<q>[1-4])\.?\s?{QUARTER}[-/:._,' ]*{YEAR}"),
    (1, "quarters", "", r"(?P<y>\d{4})[-/:._ ](?P<q>[1-4])"),
    (1, "half-years", "", r"(?P<y>\d{4})\s*[-/ ]?[hs](?P<h>[12])"),
    (1, "ISO weeks", "", r"(?P<y>\d{4})\s*-?\s*(?:w|kw|week|wk)\s*(?P<w>\d{1,2})(?:-?(?P<u>[1-7]))?"),
    (1, "ISO weeks", "", r"(?:w|kw|week|wk)\.?\s*(?P<w>\d{1,2})[-/., ]*(?P<y>\d{4})"),
    (1, "dates YYYYMMDD", "", COMPACT),
    (1, "years", "", r"(?P<y>[1-9]\d{3})"),
    (2, "year, day, month", "ydm", TRIPLE),
    (2, "two-digit year, name of the month, day", "y-d", AROUND),
    (2, "months", "", rf"{YEAR}[-/., ]*{NAME}"),
    (2, "days without a year", "", rf"(?P<d>\d{{1,2}})[-/. ]+{NAME}"),
    (2, "ISO weeks", "", r"(?P<y>\d{4})-?(?P<w>\d\d)"),
    (2, "days of years", "", r"(?P<y>\d{4})[-.]?(?P<j>\d{3})"),
    (2, "dates YYMMDD", "ymd", SIX),
    (2, "dates DDMMYY", "dmy", SIX),
    (2, "dates MMDDYY", "mdy", SIX),
    (2, "dates DDMMYYYY", "dmy", EIGHT),
    (2, "dates MMDDYYYY", "mdy", EIGHT),
    (2, "years and decimals", "", r"(?P<y>[12]\d{3})(?P<decimals>\.\d+)?"),
    (3, "seconds since 1970", "", r"(?P<s>\d{9,11})(?:\.(?P<f>\d{1,9})\d*)?"),
    (3, "milliseconds since 1970", "", r"(?P<ms>\d{12,14})(?:\.\d+)?"),
    (3, "microseconds since 1970", "", r"(?P<us>\d{15,17})"),
    (3, "nanoseconds since 1970", "", r"(?P<ns>\d{18,19})"),
    (3, "days since 1899-12-30 (Excel)", "", r"(?P<excel>[2-6]\d{4}(?:\.\d+)?)"),
]  # fmt: skip
SHAPES = [(rank, said, order, re.compile(expression, re.IGNORECASE)) for rank, said, order, expression in SHAPES]
NUMBER = r"[-+]?\d+(?:[.,]\d*)?"
UNSAID = ("year, month, day", "years and months", "quarters")


def parse(text: pd.Series, date_format: str | None, notes: list[str]) -> pd.DatetimeIndex:
    """Times of cells of text, on the clock and calendar of whoever wrote them; NaT for cells of another shape.

    Raises UsageError where no format or several fit, or a cell has the shape of a time and is none.
    """
    if date_format is None and (times := plain_iso(text)) is not None:
        return times
    text = text.astype(str)
    codes, cells = pd.factorize(text.str.strip())
    cells = pd.Series(cells, dtype=object)
    if date_format:
        times, offsets = by_format(cells, date_format)
    else:
        said, times, offsets = settled(cells, text.name)
        if said not in UNSAID:
            notes.append(f"times in column {text.name} read as {said}")
    wrong = np.isnat(times) & cells.str.match(r"\d").to_numpy(bool) & ~cells.str.contains(r"[^\W\d_]{2}|\*").to_numpy()
    if wrong.any():
        cell = cells[wrong].iloc[0]
        row, flag = text.index[text.str.strip() == cell][0], f"--date_format {date_format}: " if date_format else ""
        raise UsageError(f"{flag}{cell} in column {text.name}, row {row} is no time as the others are; correct it")
    whole = pd.DatetimeIndex(times[codes])
    return on_the_clock(whole, offsets[codes], text.name, notes)


def plain_iso(text: pd.Series) -> pd.DatetimeIndex | None:
    """Times of a column like 2024-01-31 or 2024-01-31 12:00:00, the common case, fast; None if it is another."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?", text.iloc[0]):
        return None
    with contextlib.suppress(ValueError):
        times = pd.DatetimeIndex(pd.to_datetime(text, format="ISO8601"))
        return in_microseconds(times) if times.tz is None and not times.hasnans else None
    return None


def strptimes(cells: pd.Series, date_format: str) -> tuple[np.ndarray, np.ndarray]:
    """Times and offsets from UTC in minutes of cells in `date_format`, NaT where one is not."""
    times, offsets = np.full(len(cells), "NaT", "M8[us]"), np.full(len(cells), np.nan)
    for place, cell in enumerate(cells):
        with contextlib.suppress(ValueError, re.error):  # the latter for %Y%Y
            time = datetime.strptime(cell, date_format)
            times[place] = np.datetime64(time.replace(tzinfo=None), "us")
            if time.utcoffset() is not None:
                offsets[place] = time.utcoffset().total_seconds() / 60
    return times, offsets


def by_format(cells: pd.Series, date_format: str) -> tuple[np.ndarray, np.ndarray]:
    """`strptimes`, with years of two digits in the century that is meant."""
    times, offsets = strptimes(cells, date_format)
    known = ~np.isnat(times)
    if "%y" in date_format and known.any():  # whose century Python puts between 1969 and 2068
        months = times[known].astype("M8[M]")
        years = months.astype(int) // 12 + 1970
        moved = months + 12 * (century(years % 100.0) - years).astype(int)
        times[known] += moved.astype("M8[D]") - months.astype("M8[D]")
    return times, offsets


def looks_like_times(cells: list[str], plain: bool, share: float = 0.8) -> bool:
    """Whether that share of cells has the shape of a time; plain numbers count as years or dates only if `plain`."""
    cells = cells if plain else ["" if re.fullmatch(NUMBER, cell) else cell for cell in cells]
    return any(cells) and any(
        sum(bool(shape.fullmatch(cell)) for cell in cells) >= share * len(cells) for *_, shape in SHAPES
    )


def written_as(cells: list[str], date_format: str) -> bool:
    """Whether most of the cells are in `date_format`."""
    return bool(cells) and (~np.isnat(strptimes(pd.Series(cells), date_format)[0])).mean() > 0.5


def settled(cells: pd.Series, name: str) -> tuple[str, np.ndarray, np.ndarray]:
    """What was read, times and offsets of different cells, all in the one format that fits. Raises UsageError."""
    sample = [*cells.iloc[np.unique(np.linspace(0, len(cells) - 1, 40).astype(int))]]
    readings = []
    for rank, said, order, shape in SHAPES:
        if sum(bool(shape.fullmatch(cell)) for cell in sample) >= 0.6 * len(sample):
            parts = cells.str.extract(f"^(?:{shape.pattern})$", flags=re.IGNORECASE)
            matched = cells.str.fullmatch(shape).to_numpy(bool)
            times, offsets = assembled(parts.rename(columns=dict(zip("abc", order))))
            readings.append((rank, said, order, times, offsets, matched))
    most = max((matched.sum() for *_, matched in readings), default=0)
    readings = [reading for reading in readings if reading[-1].sum() == most and most]
    whole = [reading for reading in readings if not np.isnat(reading[3][reading[-1]]).any()]
    if not readings:
        raise UsageError(f"column {name}: {cells.iloc[0]} is no time that can be read; give its --date_format")
    if not whole:
        _, said, _, times, _, matched = min(readings, key=lambda reading: np.isnat(reading[3]).sum())
        cell = cells[matched & np.isnat(times)].iloc[0]
        raise UsageError(f"{cell} in column {name} is no time, read as {said}; correct it, or give --date_format")
    lowest = min(rank for rank, *_ in whole)
    options = {times.tobytes(): (said, order, times, offsets) for rank, said, order, times, offsets, _ in whole[::-1]
               if rank == lowest}  # fmt: skip
    said, _, times, offsets = evenest([*options.values()], cells, name)
    if said == "days without a year":
        raise UsageError(f"{cells.iloc[0]} in column {name} has no year of four digits; write one")
    return said, times, offsets


def evenest(options: list[tuple], cells: pd.Series, name: str) -> tuple:
    """The one of several readings of a column whose steps are even. Raises UsageError if that does not tell."""
    if len(options) == 1:
        return options[0]
    scores = [evenness(times) for _, _, times, _ in options]
    best, second = np.argsort(scores)[::-1][:2]
    if scores[best] >= 0.5 and scores[second] <= 0.7 * scores[best]:
        return options[best]
    if any(said == "days without a year" for said, *_ in options):
        raise UsageError(f"{cells.iloc[0]} in column {name} has no year of four digits; write one")
    ways = " or ".join(strftime(cells.iloc[0], order) or said for said, order, *_ in options)
    raise UsageError(f"--date_format: {cells.iloc[0]} in column {name} may be {ways}; say which")


def strftime(cell: str, order: str) -> str:
    """The format of a date of three numbers in that order, as --date_format takes it; empty if it is no such date."""
    if not order or "-" in order:
        return ""
    if cell.isdigit():
        return "".join(f"%{part}" for part in order).replace("y", "Y" if len(cell) == 8 else "y")
    half = re.search(r"[AP]M", cell, re.IGNORECASE)
    names = iter([*order, "I" if half else "H", *"MSf"])
    code = lambda match: "%" + next(names).replace("y", "Y" if len(match[0]) == 4 else "y")  # noqa: E731
    return re.sub(r"\d+", code, cell).replace(half[0] if half else "AM", "%p")


def evenness(times: np.ndarray) -> float:
    """The share of the periods from the first to the last of times that have one; half of it if they go to and fro."""
    times = times[~np.isnat(times)]
    moves, times = np.diff(times).astype(int), pd.DatetimeIndex(np.unique(times))
    try:
        share = len(times) / (placed(times, step_of(times))[1][-1] + 1)
    except UsageError:
        return 0.0
    return share if (moves > 0).all() or (moves < 0).all() else share / 2


def assembled(parts: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Times and offsets in minutes of the named parts of cells, columns of text; NaT where they make no time."""
    number = lambda name, default=0.0: (  # noqa: E731
        pd.to_numeric(parts[name]).fillna(default).to_numpy(float) if name in parts else np.full(len(parts), default)
    )
    fraction = (
        (pd.to_numeric("0." + parts["f"].fillna("0")).to_numpy() * 1e9).round() if "f" in parts else 0 * number("f")
    )
    for unit in ("s", "ms", "us", "ns"):
        if unit in parts:
            whole = pd.to_numeric(parts[unit]).fillna(0).astype("int64").to_numpy()
            times = whole.astype(f"M8[{unit}]").astype("M8[ns]" if unit == "ns" else "M8[us]")
            times = times + (fraction // 1000).astype("m8[us]")
            return np.where(parts[unit].isna(), np.datetime64("NaT"), times), np.full(len(parts), np.nan)
    if "excel" in parts:
        seconds = (pd.to_numeric(parts["excel"]).to_numpy() * 86400).round()
        return np.datetime64("1899-12-30", "us") + seconds.astype("m8[s]"), np.full(len(parts), np.nan)
    dates, valid = dates_from(parts, number)
    hours, minutes, seconds = number("H"), number("M"), number("S")
    valid &= (minutes < 60) & (seconds < 60) & ((hours < 24) | ((hours == 24) & (minutes + seconds == 0)))
    if "half" in parts:
        half = parts["half"].str.lower().str[0]
        valid &= half.isna() | ((hours >= 1) & (hours <= 12))
        hours = np.where(half.isna(), hours, hours % 12 + 12 * (half == "p"))
    whole = np.where(valid, hours * 3600 + minutes * 60 + seconds, 0).astype("m8[s]")
    nanoseconds = bool((fraction % 1000).any())
    times = (
        dates.astype("M8[ns]" if nanoseconds else "M8[us]")
        + whole
        + fraction.astype("m8[ns]").astype("m8[us]" if not nanoseconds else "m8[ns]")
    )
    return np.where(valid, times, np.datetime64("NaT")), offsets_from(parts)


def dates_from(parts: pd.DataFrame, number) -> tuple[np.ndarray, np.ndarray]:
    """Dates of the named parts of cells, and whether each is one."""
    if "y" not in parts:
        parts = parts.assign(y=parts["d"].map(lambda cell: "2000", na_action="ignore"))
    digits, years = parts["y"].fillna("").str.len().to_numpy(), pd.to_numeric(parts["y"]).to_numpy(float)
    years = np.where(digits == 2, century(np.where(digits == 2, years, np.nan)), np.where(digits == 4, years, np.nan))
    months, days = number("m", 1.0), number("d", 1.0)
    valid = ~np.isnan(years) & (years >= 1000) & (months >= 1) & (months <= 12) & (days >= 1) & (days <= 31)
    if "name" in parts:
        months = parts["name"].map(month_number).to_numpy(float)
        valid &= ~np.isnan(months)
    if "q" in parts:
        months = 3 * number("q", 1.0) - 2
    if "h" in parts:
        months = 6 * number("h", 1.0) - 5
    if "decimals" in parts:
        twelfths = 12 * number("decimals")
        months = twelfths.round() + 1
        valid &= (np.abs(twelfths - twelfths.round()) < 0.1) & (months <= 12)
    if "next" in parts:
        valid &= (number("next") % 100 == (years + 1) % 100) & (len(parts) > 2)
    months = np.where(valid, months, 1).astype(int) - 1
    first = (np.where(valid, years, 1970).astype(int) * 12 - 1970 * 12 + months).astype("M8[M]")
    dates = first.astype("M8[D]") + np.where(valid, days - 1, 0).astype(int)
    if "w" in parts:
        fourth = first.astype("M8[D]") + 3
        monday = fourth - (fourth.astype(int) + 3) % 7
        dates = monday + (7 * number("w") - 8 + number("u", 7.0)).astype(int)
        thursday = monday + (7 * number("w") - 4).astype(int)
        return dates, valid & (number("w") >= 1) & (thursday.astype("M8[Y]") == first.astype("M8[Y]"))
    if "j" in parts:
        dates = first.astype("M8[D]") + (number("j", 1.0) - 1).astype(int)
        return dates, valid & (number("j") >= 1) & (dates.astype("M8[Y]") == first.astype("M8[Y]"))
    return dates, valid & (dates.astype("M8[M]") == first)


def month_number(word) -> float:
    """1 to 12 of a month's name or its beginning, in seven languages; NaN of any other."""
    plain = unicodedata.normalize("NFKD", str(word).lower()).encode("ascii", "ignore").decode()
    return MONTHS.get(plain[:4], MONTHS.get(plain[:3], np.nan))


def century(years: np.ndarray) -> np.ndarray:
    """Years of two digits with the century that keeps them together and not in the future. Raises UsageError."""
    if np.isnan(years).all():
        return years
    known = np.unique(years[~np.isnan(years)])
    gaps = np.diff(known, append=known[0] + 100)
    if gaps.max() < 10:
        raise UsageError("--date_format: years of two digits span a century; write them with four")
    first = known[(np.argmax(gaps) + 1) % len(known)]
    unfolded = first + (years - first) % 100
    return unfolded + 100 * ((datetime.now().year + 1 - np.nanmax(unfolded)) // 100)


def offsets_from(parts: pd.DataFrame) -> np.ndarray:
    """Minutes east of Greenwich, NaN where no offset is written."""
    if "zone" not in parts or parts["zone"].isna().all():
        return np.full(len(parts), np.nan)
    written = parts["zone"].str.extract(r"^([+-])(\d\d):?(\d\d)?$")
    minutes = pd.to_numeric(written[1]) * 60 + pd.to_numeric(written[2]).fillna(0)
    minutes = minutes.where(written[0] != "-", -minutes).to_numpy(float)
    return np.where(parts["zone"].notna() & np.isnan(minutes), 0.0, minutes)


def on_the_clock(times: pd.DatetimeIndex, offsets: np.ndarray, name, notes: list[str]) -> pd.DatetimeIndex:
    """Times as they are written, without their offsets; those of summer time in winter time if hours matter."""
    times, kinds = in_microseconds(times), np.unique(offsets[~times.isna()])
    if np.isnan(kinds).all():
        return times
    if np.isnan(kinds).any():
        raise UsageError(f"column {name}: some times have an offset from UTC and some have none; write all alike")
    low = clock_name(kinds.min())
    if len(kinds) == 1:
        notes.append(f"times in column {name} kept on the clock of {low}")
        return times
    standard = times - pd.to_timedelta(offsets - kinds.min(), unit="min")
    kinds = ", ".join(map(clock_name, kinds))
    if times_of_day(times) < times_of_day(standard) or times_of_day(times) == 1:
        notes.append(f"times in column {name} ({kinds}) kept on the clock as written")
        return times
    notes.append(f"times in column {name} ({kinds}) counted in {low} throughout")
    return in_microseconds(standard)


def clock_name(minutes: float) -> str:
    """UTC+01:00 of 60."""
    return f"UTC{'-' if minutes < 0 else '+'}{int(abs(minutes)) // 60:02d}:{int(abs(minutes)) % 60:02d}"


def times_of_day(times: pd.DatetimeIndex) -> int:
    """How many different times of day there are."""
    return len(np.unique(times.as_unit("us").asi8 % DAY_US))
