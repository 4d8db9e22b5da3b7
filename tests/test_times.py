"""Times as people write them, and the step between them."""

import numpy as np
import pandas as pd
import pytest
from test_tables import MOIS, MONATE, check, months, read, rows

from tiny_diffusion.messages import UsageError

STAMPS = {  # an example: (its format, what to write, first, last, freq)
    "1990M01": (lambda s: s.strftime("%YM%m"), "MS", "2010-01", "2015-10", "M"),
    "2018 Q1": (lambda s: f"{s.year} Q{s.quarter}", "QS", "2010Q1", "2027Q2", "Q-DEC"),
    "Q1 1990": (lambda s: f"Q{s.quarter} {s.year}", "QS", "2010Q1", "2027Q2", "Q-DEC"),
    "2018q1": (lambda s: f"{s.year}q{s.quarter}", "QS", "2010Q1", "2027Q2", "Q-DEC"),
    "1Q90": (lambda s: f"{s.quarter}Q{s:%y}", "QS", "2010Q1", "2027Q2", "Q-DEC"),
    "2018.1": (lambda s: f"{s.year}.{s.quarter}", "QS", "2010Q1", "2027Q2", "Q-DEC"),
    "2018.10": (lambda s: f"{s.year}.{s.month}", "MS", "2010-01", "2015-10", "M"),
    "201001": (lambda s: s.strftime("%Y%m"), "MS", "2010-01", "2015-10", "M"),
    "01/2010": (lambda s: s.strftime("%m/%Y"), "MS", "2010-01", "2015-10", "M"),
    "2010.0833": (lambda s: f"{s.year + (s.month - 1) / 12:.11g}", "MS", "2010-01", "2015-10", "M"),
    "Januar 2010": (lambda s: f"{MONATE[s.month - 1]} {s.year}", "MS", "2010-01", "2015-10", "M"),
    "janv.-10": (lambda s: f"{MOIS[s.month - 1]}-{s:%y}", "MS", "2010-01", "2015-10", "M"),
    "2020-W02": (lambda s: s.strftime("%G-W%V"), "W-MON", "2010-01-04/2010-01-10", "2011-05-02/2011-05-08", "W-SUN"),
    "2010/11": (lambda s: f"{s.year}/{(s.year + 1) % 100:02d}", "YS", "2010", "2079", "Y-DEC"),
    "20100101": (lambda s: s.strftime("%Y%m%d"), "D", "2010-01-01", "2010-03-11", "D"),
    "010110": (lambda s: s.strftime("%d%m%y"), "D", "2010-01-01", "2010-03-11", "D"),
    "2010010123": (lambda s: s.strftime("%Y%m%d%H"), "h", "2010-01-01 00:00", "2010-01-03 21:00", "h"),
    "01JAN2010:00:00": (lambda s: s.strftime("%d%b%Y:%H:%M"), "h", "2010-01-01 00:00", "2010-01-03 21:00", "h"),
    "1/1/2010 1:00 PM": (lambda s: s.strftime("%m/%d/%Y %I:%M %p"), "h", "2010-01-01 00:00", "2010-01-03 21:00", "h"),
    "Friday, January 1, 2010": (lambda s: f'"{s:%A, %B} {s.day}, {s.year}"', "D", "2010-01-01", "2010-03-11", "D"),
    "2010年1月1日": (lambda s: f"{s.year}年{s.month}月{s.day}日", "D", "2010-01-01", "2010-03-11", "D"),
    "a range": (
        lambda s: f"{s:%d.%m.%Y %H:%M} - {s + pd.Timedelta('1h'):%d.%m.%Y %H:%M}",
        "h",
        "2010-01-01 00:00",
        "2010-01-03 21:00",
        "h",
    ),
    "seconds": (lambda s: s.value // 10**9, "h", "2010-01-01 00:00", "2010-01-03 21:00", "h"),
    "milliseconds": (lambda s: s.value // 10**6, "15min", "2010-01-01 00:00", "2010-01-01 17:15", "15min"),
    "an Excel number": (lambda s: (s - pd.Timestamp("1899-12-30")).days, "D", "2010-01-01", "2010-03-11", "D"),
}


@pytest.mark.parametrize("example", STAMPS)
def test_times_are_read_as_people_write_them(tmp_path, example):
    written, freq, *expected = STAMPS[example]
    stamps = pd.date_range("2010-01-01", periods=70, freq=freq)
    check(read(tmp_path / "my.csv", "date,a\n" + rows([written(s) for s in stamps]))[0], *expected)


def test_24_00_is_the_midnight_after(tmp_path):
    stamps = pd.date_range("2024-01-01 00:00", periods=700, freq="h")
    text = "time,a\n" + rows([f"{s:%d.%m.%Y} {s.hour + 1:02d}:00" for s in stamps])
    check(read(tmp_path / "my.csv", text)[0], "2024-01-01 01:00", "2024-01-30 04:00", "h")


CALENDARS = {  # name: (stamps, first, last, freq)
    "month ends": (pd.date_range("2015-01-31", periods=60, freq="ME"), "2015-01", "2019-12", "M"),
    "last business days": (pd.date_range("2015-01-30", periods=60, freq="BME"), "2015-01", "2019-12", "M"),
    "the 15th": (months(60, "2015-01") + pd.Timedelta("14D"), "2015-01", "2019-12", "M"),
    "quarter ends": (pd.date_range("2015-03-31", periods=20, freq="QE"), "2015Q1", "2019Q4", "Q-DEC"),
    "decades": (pd.date_range("1790-01-01", periods=24, freq="10YS", unit="s"), "1790", "2020", "10Y-DEC"),
    "a thousand years": (pd.date_range("1000-01-01", periods=900, freq="YS", unit="s"), "1000", "1899", "Y-DEC"),
    "half-hours": (pd.date_range("2024", periods=60, freq="30min"), "2024-01-01 00:00", "2024-01-02 05:30", "30min"),
    "milliseconds": (
        pd.date_range("2024-01-01", periods=60, freq="10ms"),
        "2024-01-01 00:00:00.000",
        "2024-01-01 00:00:00.590",
        "10ms",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALENDARS)
def test_the_step_is_told_by_the_calendar_or_the_clock(tmp_path, name):
    stamps, *expected = CALENDARS[name]
    check(read(tmp_path / "my.csv", "time,a\n" + rows([str(stamp) for stamp in stamps]))[0], *expected)


def test_a_missing_row_does_not_hide_the_step(tmp_path):
    hours = pd.date_range("2024-01-01", periods=2160, freq="h")
    (table,), said = read(tmp_path / "my.csv", "time,a\n" + rows(hours.delete(700)))
    assert len(table.values) == 2160 and table.values.isna().sum() == 1 and np.isnan(table.values.iloc[700])
    assert "every h; 1 of 2160 rows is missing, the first 2024-01-30 04:00" in said
    days = pd.date_range("2023-01-02", periods=300, freq="B")
    (table,), said = read(tmp_path / "my.csv", "time,a\n" + rows(days.delete([100, 150]).date))
    assert len(table.values) == 300 and "every B; 2 of 300 rows are missing, the first 2023-05-22" in said


def test_times_a_little_off_their_step_are_moved_and_others_asked_for(tmp_path):
    generator = np.random.default_rng(0)
    stamps = pd.date_range("2024-03-01", periods=500, freq="10s")
    off = stamps + pd.to_timedelta(generator.integers(-900, 900, 500), unit="ms")
    found, said = read(tmp_path / "my.csv", "time,a\n" + rows([stamp.isoformat() for stamp in off]))
    check(found, "2024-03-01 00:00:00", "2024-03-01 01:23:10", "10s")
    assert "moved to even steps" in said
    off = stamps[np.sort(generator.choice(500, 100, False))] + pd.to_timedelta(generator.integers(0, 9, 100), unit="s")
    with pytest.raises(UsageError, match="--freq: the time between rows cannot be told"):
        read(tmp_path / "my.csv", "time,a\n" + rows(off))


FREQS = {"MS": "M", "ME": "M", "M": "M", "QS": "Q-DEC", "QE": "Q-DEC", "YS": "Y-DEC", "YE": "Y-DEC", "2QS": "2Q-DEC"}
FREQS |= {"A": "Y-DEC", "W": "W-SUN", "W-WED": "W-WED", "2D": "2D", "QS-FEB": "Q-JAN", "QE-NOV": "Q-NOV", "D": "D"}


@pytest.mark.parametrize("freq", FREQS)
def test_freq_takes_the_names_of_pandas(tmp_path, freq):
    text = "time,a\n" + rows(pd.date_range("2020-01-01", periods=1000).date)
    (table,), _ = read(tmp_path / "my.csv", text, freq=freq)
    assert table.values.index.freqstr == FREQS[freq] and table.values.notna().all()


def test_freq_takes_steps_of_a_clock_and_no_others(tmp_path):
    text = "time,a\n" + rows(pd.date_range("2024-01-01", periods=100, freq="10ms"))
    for freq, expected in {"10ms": "10ms", "5ms": "5ms", "L": "ms", "20000us": "20000us"}.items():
        assert read(tmp_path / "my.csv", text, freq=freq)[0][0].values.index.freqstr == expected
    text = "time,a\n" + rows(pd.date_range("2024-01-01", periods=100, freq="h"))
    for freq, expected in {"H": "h", "h": "h", "2h": "2h", "30min": "30min", "60T": "60min"}.items():
        assert read(tmp_path / "my.csv", text, freq=freq)[0][0].values.index.freqstr == expected
    for freq in ("m", "fortnight", "0h", "h-SUN", ""):
        with pytest.raises(UsageError, match=r"--freq .*: no such time between rows; choose one of h") as error:
            read(tmp_path / "my.csv", text, freq=freq or "-")
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError, match="--freq B: rows on weekends, as 2024-01-06"):
        read(tmp_path / "my.csv", "time,a\n" + rows(pd.date_range("2024-01-01", periods=9).date), freq="B")
