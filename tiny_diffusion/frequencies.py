"""The step between rows, told from their times, and the periods that the times become."""

import re

import numpy as np
import pandas as pd

from tiny_diffusion.messages import UsageError, many

CHOICES = "h, 30min, D, B, W, M, Q, Y"
UNITS = {"h": 3_600_000_000_000, "min": 60_000_000_000, "s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}  # in ns
NICE = [n * UNITS[u] for u, ns in (("ms", (1, 2, 5, 10, 20, 50, 100, 200, 250, 500)), ("s", (1, 2, 5, 10, 15, 20, 30)),
                                   ("min", (1, 2, 5, 10, 15, 20, 30)), ("h", (1, 2, 3, 4, 6, 8, 12, 24)))
        for n in ns]  # fmt: skip
DAY = 24 * UNITS["h"]
WEEKDAYS = ["MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN"]
ALIASES = {"ME": "M", "MS": "M", "BM": "M", "BME": "M", "BMS": "M", "QS": "Q", "QE": "Q", "YS": "Y", "YE": "Y"}
ALIASES |= {"A": "Y", "AS": "Y", "BQE": "Q", "BQS": "Q"}
ALIASES |= {"H": "h", "T": "min", "S": "s", "L": "ms", "U": "us", "N": "ns"}
ALIASES |= {unit.lower(): unit for unit in "BDWQY"} | {unit: unit for unit in [*"BDWMQY", *UNITS]}
STARTS = ("MS", "QS", "YS", "AS")  # aliases whose anchor is the month that a quarter or year begins with
ENDS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
SUMMER_TIMES = ("Europe/Berlin", "Europe/London", "Europe/Helsinki", "America/New_York", "Australia/Sydney")


def in_microseconds(times: pd.DatetimeIndex) -> pd.DatetimeIndex:
    """The same times, in microseconds where that loses nothing: years before 1677 and after 2262 need it."""
    return times if times.unit == "ns" and (times.asi8 % 1000).any() else times.as_unit("us")


def in_winter_time(times: pd.DatetimeIndex, notes: list[str]) -> pd.DatetimeIndex:
    """Times in file order, of which some come twice because the clock goes back in autumn, in winter time.

    The same times where no such clock explains all that come twice.
    """
    forward = times if times[0] <= times[-1] else times[::-1]
    for zone in SUMMER_TIMES:
        first = forward.duplicated(keep="last")
        known = forward.tz_localize(zone, ambiguous=first, nonexistent="NaT")
        if not known.hasnans and known.is_unique and known.is_monotonic_increasing:
            january = pd.Timestamp(known[0].year, 7 if "Australia" in zone else 1, 1, tz=zone).utcoffset()
            notes.append(f"the clock goes back in autumn, as in {zone}: counted in winter time")
            standard = in_microseconds(known.tz_convert(None) + january)
            return standard if times[0] <= times[-1] else standard[::-1]
    return times


def after_midnight(times: pd.DatetimeIndex, notes: list[str]) -> pd.DatetimeIndex:
    """Daily or longer steps stamped at midnight of a zone east of the clock they are written in: at the day meant."""
    gaps = np.diff(np.unique(times.asi8)) * (1 if times.unit == "ns" else 1000)
    if len(gaps) < 2 or np.median(gaps) < 0.9 * DAY:
        return times
    hours = np.unique(times.as_unit("us").asi8 % (DAY // 1000) / 3.6e9)
    summer = len(hours) == 2 and (hours[1] - hours[0] == 1 or hours[1] - hours[0] == 23) and hours[1] >= 13
    ends = (
        len(hours) == 1 and hours[0] >= 13 and hours[0] % 0.5 == 0 and (times + pd.Timedelta("1D")).is_month_start.all()
    )
    if not summer and not ends:
        return times
    notes.append(f"times at {' and '.join(f'{hour:g}:00' for hour in hours)} taken as midnight of the day after")
    return times.ceil("D")


def step_of(times: pd.DatetimeIndex) -> str:
    """The time between rows, as pandas names periods, of different times in their order. Raises UsageError."""
    if len(times) < 2:
        raise UsageError(f"--freq: one row does not tell the time between rows; give it: {CHOICES}")
    scale = 1 if times.unit == "ns" else 1000
    gaps = np.diff(times.asi8) * scale
    if np.median(gaps) >= 0.9 * DAY:
        freq = calendar_step(dates_of(times))
    else:
        step = most_frequent(gaps)
        if (gaps == step).mean() < 0.5 and ((gaps % step).any() or gaps.sum() > 10 * len(gaps) * step):
            step = min(NICE, key=lambda nice: abs(nice - np.median(gaps)))
        unit = next(unit for unit, size in UNITS.items() if step % size == 0)
        freq = f"{step // UNITS[unit] if step != UNITS[unit] else ''}{unit}"
    wrong = off_grid(times, freq)
    if len(wrong):
        few = f"most often {freq}, but {shown(times[wrong[0]])} lies between"
        raise UsageError(f"--freq: the time between rows cannot be told ({few}); give it: {CHOICES}")
    return freq


def calendar_step(days: np.ndarray) -> str:
    """The step of dates, days since 1970 in their order: years, quarters, months, weeks, business days or days."""
    gaps, months = np.diff(days), days.astype("M8[D]").astype("M8[M]")
    of_month = days - months.astype("M8[D]").astype(int) + 1
    lengths = (months + 1).astype("M8[D]").astype(int) - months.astype("M8[D]").astype(int)
    same_day = (of_month == np.minimum(of_month.max(), lengths)).all()
    step, moves = most_frequent(gaps), np.diff(months.astype(int))
    if moves.min() > 0 and np.median(gaps) > 27 and (same_day or (gaps % step).any()):
        moved = most_frequent(moves)
        unit = next(unit for unit, size in (("Y", 12), ("Q", 3), ("M", 1)) if moved % size == 0)
        number, anchor = moved // {"Y": 12, "Q": 3, "M": 1}[unit], {"Y": "-DEC", "Q": "-DEC", "M": ""}[unit]
        return f"{number if number > 1 else ''}{unit}{anchor}"
    weekdays = (days + 3) % 7
    if step % 7 == 0:
        return f"{step // 7 if step > 7 else ''}W-{WEEKDAYS[most_frequent(weekdays)]}"
    weekends = (days[-1] + 3) // 7 > (days[0] + 3) // 7 and weekdays.max() < 5
    return "B" if step == 1 and weekends else f"{step if step > 1 else ''}D"


def most_frequent(values: np.ndarray) -> int:
    """The most frequent of whole numbers, the smallest of several."""
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def dates_of(times: pd.DatetimeIndex) -> np.ndarray:
    """Days since 1970; times within an hour of midnight on both sides are at that midnight."""
    scale = DAY if times.unit == "ns" else DAY // 1000
    from_midnight = (times.asi8 + scale // 2) % scale - scale // 2
    near = abs(from_midnight).max() <= scale / 24
    return (times.asi8 + (scale // 2 if near else 0)) // scale


def grid_of(times: pd.DatetimeIndex, freq: str) -> tuple[np.ndarray, np.ndarray, int, str] | None:
    """Times, those of an even grid nearest to them, its step, and the unit of all; None where no grid is meant."""
    count, unit = re.match(r"(\d*)([A-Za-z]+)", freq).groups()
    if unit in ("M", "Q", "Y", "B") or (unit == "D" and not count):
        return None
    if unit in ("W", "D"):
        here, size, counted = dates_of(times), 7 if unit == "W" else 1, "D"
    else:
        here, size, counted = times.asi8, UNITS[unit] // (1 if times.unit == "ns" else 1000), times.unit
    step = int(count or 1) * size
    rest = here % step
    usual = most_frequent(rest)
    first = usual if (rest == usual).mean() >= 0.5 else 0
    return here, (here - first + step // 2) // step * step + first, step, counted


def off_grid(times: pd.DatetimeIndex, freq: str) -> np.ndarray:
    """Which of the times, in their order, lie between the steps of `freq`."""
    count, unit = re.match(r"(\d*)([A-Z]+)?", freq).groups()
    if unit in ("M", "Q", "Y"):
        _, places = placed(times, freq.removeprefix(count))
        return np.flatnonzero(
            (places % int(count or 1) != most_frequent(places % int(count or 1))) | (np.diff(places, prepend=-1) == 0)
        )
    if (grid := grid_of(times, freq)) is None:
        return np.array([], int)
    here, there, step, _ = grid
    return np.flatnonzero((abs(here - there) > step / 4) | (np.diff(there, prepend=there[0] - 1) == 0))


def placed(times: pd.DatetimeIndex, freq: str, told: bool = False) -> tuple[pd.Period, np.ndarray]:
    """The first period, and how many steps of `freq` after it each of the times in their order is.

    Times a little off an even grid belong to its nearest step, unless the step is `told` by the user.
    """
    grid = None if told else grid_of(times, freq)
    if grid is not None:
        times = pd.DatetimeIndex(grid[1].astype(f"M8[{grid[3]}]"))
    elif freq.lstrip("0123456789")[0] in "DBWMQY":
        times = pd.DatetimeIndex(dates_of(times).astype("M8[D]"))
    if freq.endswith("ns") and (times.year.min() < 1678 or times.year.max() > 2261):
        raise UsageError(f"--freq {freq}: nanoseconds are counted from 1678 to 2261 only; choose a longer one")
    periods = times.to_period(freq)
    return periods[0], (periods.asi8 - periods.asi8[0]) // periods.freq.n


def tell_shift(times: pd.DatetimeIndex, freq: str, told: bool, notes: list[str]) -> None:
    """Note how far times are moved to make their steps even, or what a period of `freq` leaves out of them."""
    grid = None if told else grid_of(times, freq)
    if grid is not None and (grid[0] != grid[1]).any():
        most = pd.Timedelta(int(abs(grid[0] - grid[1]).max()), grid[3])
        notes.append(f"{many((grid[0] != grid[1]).sum(), 'time')} moved to even steps, by {shown_span(most)} at most")
    unit = re.sub(r"\d", "", freq)
    if unit in UNITS and grid is not None:
        rest = pd.Timedelta(int(grid[1][0] % max(1, UNITS[unit] // (1 if grid[3] == "ns" else 1000))), grid[3])
        if rest:
            notes.append(f"times are {shown_span(rest)} after the full {unit} that counts them")


def tell_weekdays(times: pd.DatetimeIndex, freq: str, notes: list[str]) -> None:
    """Note that weeks end on one weekday for all, where times fall on several."""
    days = np.unique((dates_of(times) + 3) % 7)
    if "W-" in freq and len(days) > 1:
        notes.append(f"times on {', '.join(WEEKDAYS[day] for day in days)} count to the week that ends on {freq[-3:]}")


def shown_span(span: pd.Timedelta) -> str:
    """A span of time in a message, in its largest unit that is whole."""
    for unit, size in (("day", DAY), *UNITS.items()):
        if span.value % size == 0:
            return many(span.value // size, unit) if unit == "day" else f"{span.value // size} {unit}"
    return str(span)


def freq_of(given: str, times: pd.DatetimeIndex) -> str:
    """`--freq`, in any of pandas' spellings, as a period's; weeks end on the times' weekday. Raises UsageError."""
    match = re.fullmatch(r"(\d{0,9})([A-Za-z]+)(?:-([A-Z]{3}))?", given)
    count, name, anchor = match.groups() if match else ("", "", None)
    unit = ALIASES.get(name)
    known = WEEKDAYS if unit == "W" else ENDS if unit in ("Q", "Y") else ()
    if unit is None or (count and not int(count)) or (anchor and anchor not in known):
        raise UsageError(f"--freq {given}: no such time between rows; choose one of {CHOICES}")
    if unit == "W":
        weekdays = np.unique((dates_of(times) + 3) % 7)
        anchor = anchor or WEEKDAYS[weekdays[0] if len(weekdays) == 1 else 6]
    elif unit == "B" and (weekends := times[(dates_of(times) + 3) % 7 > 4]).size:
        raise UsageError(f"--freq {given}: rows on weekends, as {shown(weekends[0])}; choose D, or take them out")
    elif unit in "QY":
        anchor = ENDS[ENDS.index(anchor) - 1] if anchor and name in STARTS else anchor or "DEC"
    return f"{int(count) if int(count or 1) > 1 else ''}{unit}{f'-{anchor}' if anchor else ''}"


def stamp(period: pd.Period) -> str:
    """One time for a period, as pandas reads it: the last day of a week, the first of a quarter or a year.

    Rows of weekly data are on that weekday.
    """
    unit = period.freqstr.lstrip("0123456789")
    if unit[0] not in "WQY":
        return str(period)
    return str(pd.Period(ordinal=period.ordinal, freq=unit).asfreq("D", "end" if unit[0] == "W" else "start"))


def moments(start: pd.Period, number: int) -> np.ndarray:
    """When `number` periods from `start` on begin, as M8[us]: pandas' own nanoseconds end in 1677 and 2262."""
    return pd.period_range(start, periods=number).asfreq("us", how="start").asi8.astype("M8[us]")


def shown(time: pd.Timestamp) -> str:
    """A time in a message, without a midnight that says nothing."""
    return str(time).removesuffix(" 00:00:00")
