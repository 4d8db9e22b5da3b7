"""Tables as people have them: the right periods and values, what is said, and what is refused."""

import contextlib
import gzip
import io
import zipfile

import numpy as np
import pandas as pd
import pytest

from tiny_diffusion import tables
from tiny_diffusion.frequencies import stamp
from tiny_diffusion.messages import UsageError
from tiny_diffusion.tables import read_tables as pair


def read_tables(*arguments, say=None, **flags):
    """The tables of a file; `say` is told the line that was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        found, _ = pair(*arguments, **flags)
    if say:
        say(out.getvalue().rstrip("\n"))
    return found


def read(path, content, **flags):
    """The tables of a file with that content, and the line that is said about it."""
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    said = []
    found = read_tables(path, say=said.append, **flags)
    assert len(said) == 1 and "\n" not in said[0]
    return found, said[0]


def rows(stamps, values=None, separator=","):
    """A column of stamps and one of values, 0, 1, 2 … unless given."""
    values = range(len(stamps)) if values is None else values
    return "".join(f"{stamp}{separator}{value}\n" for stamp, value in zip(stamps, values))


def months(number, start="2010-01"):
    return pd.date_range(start, periods=number, freq="MS")


def check(found, first, last, freq, values=None):
    """One series from first to last, 0, 1, 2 … unless other values are given."""
    (table,) = found
    index = table.values.index
    assert (str(index[0]), str(index[-1]), index.freqstr) == (first, last, freq)
    np.testing.assert_array_equal(table.values, np.arange(len(index)) if values is None else values)


OFFSETS = {  # freq of the dates: (zone, periods, first, last, freq)
    "MS": ("Europe/Berlin", 110, "2015-01", "2024-02", "M"),
    "W-SUN": ("Asia/Tokyo", 60, "2014-12-29/2015-01-04", "2016-02-15/2016-02-21", "W-SUN"),
    "D": ("Europe/Berlin", 400, "2015-01-01", "2016-02-04", "D"),
    "YS": ("Asia/Tokyo", 30, "2015", "2044", "Y-DEC"),
    "QS": ("Europe/Berlin", 30, "2015Q1", "2022Q2", "Q-DEC"),
    "B": ("Asia/Tokyo", 300, "2015-01-01", "2016-02-24", "B"),
}


@pytest.mark.parametrize("freq", OFFSETS)
def test_stamps_with_an_offset_keep_the_calendar_they_were_written_in(tmp_path, freq):
    zone, number, first, last, expected = OFFSETS[freq]
    stamps = [stamp.isoformat() for stamp in pd.date_range("2015-01-01", periods=number, freq=freq, tz=zone)]
    found, said = read(tmp_path / "my.csv", "time,a\n" + rows(stamps))
    check(found, first, last, expected)
    assert "kept on the clock" in said


def test_hours_across_summer_time_are_counted_in_winter_time(tmp_path):
    stamps = pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin")
    found, said = read(tmp_path / "my.csv", "time,a\n" + rows([stamp.isoformat() for stamp in stamps]))
    check(found, "2024-03-30 00:00", "2024-04-01 23:00", "h")
    assert "counted in UTC+01:00" in said
    for zone, first in (("Europe/Berlin", "2023-09-30 23:00"), ("America/New_York", "2023-09-30 23:00")):
        stamps = pd.date_range("2023-10-01", periods=24 * 60, freq="h", tz=zone).tz_localize(None)
        found, said = read(tmp_path / "my.csv", "time,a\n" + rows(stamps))
        check(found, first, "2023-11-29 22:00", "h")
        assert f"the clock goes back in autumn, as in {zone}" in said


def test_midnights_of_another_zone_written_in_utc_are_the_days_meant(tmp_path):
    stamps = pd.date_range("2023-01-01", periods=400, tz="Europe/Berlin").tz_convert("UTC")
    found, said = read(tmp_path / "my.csv", "time,a\n" + rows([stamp.isoformat() for stamp in stamps]))
    check(found, "2023-01-01", "2024-02-04", "D")
    assert "taken as midnight of the day after" in said


DATES = {"D": ("2019-02-09", "D", 40), "MS": ("2023-12", "M", 60), "QS": ("2026Q2", "Q-DEC", 30)}
DATES["h"] = ("2019-01-17 15:00", "h", 400)


@pytest.mark.parametrize("freq", DATES)
@pytest.mark.parametrize("date_format", ["%d/%m/%Y", "%d.%m.%Y", "%d-%m-%y", "%m/%d/%Y", "%-m/%-d/%y"])
def test_one_format_holds_for_a_whole_column_of_dates(tmp_path, date_format, freq):
    last, expected, number = DATES[freq]
    stamps = pd.date_range("2019-01-01", periods=number, freq=freq)
    stamps = stamps.strftime(date_format + " %H:%M" * (freq == "h"))
    found, said = read(tmp_path / "my.csv", "time,a\n" + rows(stamps))
    check(found, {"h": "2019-01-01 00:00", "D": "2019-01-01", "MS": "2019-01", "QS": "2019Q1"}[freq], last, expected)
    assert ("month, day, year" if "%m/%d" in date_format or "-m" in date_format else "day, month, year") in said


def test_a_column_of_dates_that_may_be_both_is_asked_for(tmp_path):
    text = "time,a\n" + rows(months(12, "2024-01").strftime("%d/%m/%Y"))
    with pytest.raises(UsageError, match=r"--date_format: 01/01/2024 .* may be %m/%d/%Y or %d/%m/%Y") as error:
        read(tmp_path / "my.csv", text)
    assert "\n" not in str(error.value)
    check(read(tmp_path / "my.csv", text, date_format="%d/%m/%Y")[0], "2024-01", "2024-12", "M")
    check(read(tmp_path / "my.csv", text, date_format="%m/%d/%Y")[0], "2024-01-01", "2024-01-12", "D")
    with pytest.raises(UsageError, match=r"--date_format %Y: no column is written so, such as 01/01/2024"):
        read(tmp_path / "my.csv", text, date_format="%Y")


def test_weeks_keep_their_weekday_and_are_stamped_by_one_date(tmp_path):
    stamps = pd.date_range("2021-01-05", periods=50, freq="7D")  # Tuesdays
    for kept in (stamps, stamps.delete(20)):
        (table,), _ = read(tmp_path / "my.csv", "week,a\n" + rows(kept.date))
        index = table.values.index
        assert index.freqstr == "W-TUE" and len(index) == 50
        assert [stamp(period) for period in index] == [str(day) for day in stamps.date]
    assert stamp(index[-1] + 1) == "2021-12-21"
    (table,), _ = read(tmp_path / "my.csv", "day,a\n" + rows(pd.date_range("2023-01-06", periods=60, freq="14D").date))
    assert table.values.index.freqstr == "2W-FRI" and stamp(table.values.index[1]) == "2023-01-20"


def test_years_of_two_digits_are_those_that_are_past_and_together(tmp_path):
    for start, last in (("1949-01", "1960-12"), ("1961-01", "1972-12"), ("1995-06", "2007-05")):
        text = "month,a\n" + rows(months(144, start).strftime("%b-%y"))
        check(read(tmp_path / "my.csv", text)[0], start, last, "M")
    text = "month,a\n" + rows(months(144, "1961-01").strftime("%d.%m.%y"))
    check(read(tmp_path / "my.csv", text, date_format="%d.%m.%y")[0], "1961-01", "1972-12", "M")
    with pytest.raises(UsageError, match="--date_format: years of two digits span a century"):
        read(tmp_path / "my.csv", "month,a\n" + rows(months(1190, "1921-01").strftime("%b-%y")))


def test_a_file_without_a_header_loses_no_row(tmp_path):
    found, said = read(tmp_path / "my.csv", rows(pd.date_range("2024-01-01", periods=31).date))
    check(found, "2024-01-01", "2024-01-31", "D")
    assert found[0].name == "column 2" and "no header" in said


def test_dates_that_end_as_an_offset_does_have_none(tmp_path):
    days = [f"{day:%b}-{day.day}-{day.year}" for day in pd.date_range("1995-01-01", periods=60)]
    found, said = read(tmp_path / "my.csv", "day,a\n" + rows(days))
    check(found, "1995-01-01", "1995-03-01", "D")
    assert "UTC" not in said


MONATE = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()  # noqa: SIM905
MOIS = "janv. févr. mars avr. mai juin juil. août sept. oct. nov. déc.".split()  # noqa: SIM905


def test_rows_closer_than_freq_become_their_mean(tmp_path):
    text = "time,a\n" + rows(pd.date_range("2024-01-01", periods=400, freq="h"))
    (table,), said = read(tmp_path / "my.csv", text, freq="2h")
    np.testing.assert_array_equal(table.values, np.arange(200) * 2 + 0.5)
    assert "400 rows become the means of 200" in said


NUMBERS = {  # cells: (separator, values, what is said)
    "thousands with points": (";", ["900", "980", "1.002", "2.097"], [900, 980, 1002, 2097], "points between"),
    "thousands and decimals": (";", ["1.002,5", "12,25"], [1002.5, 12.25], "decimal commas in a; points between"),
    "decimal points": (";", ["1.002", "1.5"], [1.002, 1.5], "decimal points"),
    "decimal commas": (";", ["0,5", "12,25"], [0.5, 12.25], "decimal commas"),
    "quoted thousands": (",", ['"1,002"', '"2,500"'], [1002, 2500], "commas between thousands"),
    "quoted decimals": (",", ['"1,5"', '"2,25"'], [1.5, 2.25], "decimal commas"),
    "apostrophes": (";", ["12'000.50", "1'500.25"], [12000.5, 1500.25], "apostrophes between thousands"),
    "spaces": (";", ["12 000,50", "1 500,25"], [12000.5, 1500.25], "spaces between thousands"),
    "percent signs": (",", ["12%", "13.5%"], [12, 13.5], "percent signs dropped"),
    "dollars": (",", ['"$1,002.50"', '"$12.25"'], [1002.5, 12.25], "currencies dropped"),
    "euros": (";", ["1.002,50 €", "12,25 €"], [1002.5, 12.25], "currencies dropped"),
    "brackets": (",", ["(12.5)", "13"], [-12.5, 13], "numbers in brackets taken as negative"),
    "marks for nothing": (",", ["12", "-"], [12, np.nan], "- taken as missing"),
    "minus signs": (",", ["−12.5", "13"], [-12.5, 13], ""),
    "true and false": (",", ["True", "False"], [1, 0], ""),
}  # fmt: skip


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_are_read_as_people_write_them(tmp_path, kind):
    separator, cells, values, said = NUMBERS[kind]
    stamps = pd.date_range("2024-01-01", periods=10 * len(cells)).date
    found, line = read(tmp_path / "my.csv", f"time{separator}a\n" + rows(stamps, 10 * cells, separator))
    (table,) = found
    np.testing.assert_array_equal(table.values, np.array(10 * values)[: len(table.values)])
    assert said in line


def test_a_mark_that_may_be_of_thousands_or_decimals_is_asked_for(tmp_path):
    stamps = pd.date_range("2024-01-01", periods=31).date
    for mark in ".,":
        text = "time;a\n" + rows(stamps, [f"1{mark}{100 + i}" for i in range(31)], ";")
        with pytest.raises(UsageError, match=rf"--decimal: 1\{mark}100 in column a"):
            read(tmp_path / "my.csv", text)
        for decimal, expected in ((mark, 1.1), (".,".replace(mark, ""), 1100)):
            (table,), _ = read(tmp_path / "my.csv", text, decimal=decimal)
            assert table.values.iloc[0] == expected
    both = "time;a;b\n" + "".join(f"{day};1.{100 + i};{i},5\n" for i, day in enumerate(stamps))
    assert read(tmp_path / "my.csv", both)[0][0].values.iloc[0] == 1100
    assert read(tmp_path / "my.csv", both.replace(",5", ".5"))[0][0].values.iloc[0] == 1.1
    assert read(tmp_path / "my.csv", "time,a\n" + rows(stamps, ["1.125"] * 31))[0][0].values.iloc[0] == 1.125


def test_a_mark_that_stands_for_nothing_in_numbers_is_said(tmp_path):
    text = "time,a\n" + rows(pd.date_range("2024-01-01", periods=9).date, [1, 2, -999, 4, 5, 6, 7, 8, 9])
    assert "-999 in a read as a number; empty the cell if" in read(tmp_path / "my.csv", text)[1]


LONG = {  # columns: names of the series
    "unique_id,ds,y": ["1001", "1002"],
    "item_id,timestamp,target": ["A1", "B 2"],
    "date,symbol,close": ["A", "B"],
    "Entity,Year,life": ["Chad", "Peru"],
}


@pytest.mark.parametrize("columns", LONG)
def test_a_long_form_is_a_table_for_each_id_with_its_own_start_and_end(tmp_path, columns):
    names, order = LONG[columns], columns.split(",")
    lines = [columns]
    for name, start, length in zip(names, (0, 7), (30, 40)):
        for i in range(length):
            time = (
                1950 + start + i if "Year" in order else str(pd.Timestamp("2024-01-01") + pd.Timedelta(start + i, "D"))
            )
            cells = {order[0]: name, order[1]: time, order[2]: start + i}
            if order[0] == "date":
                cells = {"date": time, "symbol": name, "close": start + i}
            lines.append(",".join(str(cells[column]) for column in order))
    found, said = read(tmp_path / "my.csv", "\n".join(lines))
    assert [table.name for table in found] == names and "2 series of 30 to 40 rows" in said
    for table, start, length in zip(found, (0, 7), (30, 40)):
        first = pd.Period("1950", "Y") if "Year" in order else pd.Period("2024-01-01", "D")
        assert table.values.index[0] == first + start and list(table.values) == list(range(start, start + length))


def test_known_covariates_go_on_after_the_series_end(tmp_path):
    days = pd.date_range("2024-01-01", periods=30).date
    text = "unique_id,ds,y,price,city\n"
    for name in ("a", "b"):
        text += "".join(f"{name},{day},{i if i < 25 else ''},{2 * i},Rome\n" for i, day in enumerate(days))
    found, said = read(tmp_path / "my.csv", text, covariates=["price"])
    for table in found:
        assert len(table.values) == 25 and list(table.covariates) == ["price"]
        assert list(table.covariates["price"]) == list(range(0, 60, 2)) and table.values.dtype == float
    assert "city left out, not numbers" in said
    found, said = read(tmp_path / "my.csv", text)
    assert found[0].covariates.shape == (25 + 5, 0) and "price left out (--covariates" in said
    wide = "time,a,b,holiday\n" + "".join(
        f"{d},{i if i < 20 else ''},{i if i < 25 else ''},{i % 2}\n" for i, d in enumerate(days)
    )
    found, _ = read(tmp_path / "my.csv", wide, covariates=["holiday"])
    assert [len(table.values) for table in found] == [25, 25] and [len(table.covariates) for table in found] == [30, 30]
    assert found[0].values.isna().sum() == 5
    for names, message in (
        (["price"], "--covariates price: not among the columns"),
        (["a", "b", "holiday"], "name fewer"),
    ):
        with pytest.raises(UsageError, match=message):
            read(tmp_path / "my.csv", wide, covariates=names)


def test_numbers_that_pandas_cannot_read_are_read_or_refused(tmp_path):
    days = pd.date_range("2024-01-01", periods=4).strftime("%Y-%m-%d")
    found, _ = read(tmp_path / "my.csv", "time;a\n" + rows(days, ["- 1", "１２", "1,5", "+3"], ";"))
    assert found[0].values.tolist() == [-1, 12, 1.5, 3]
    with pytest.raises(UsageError, match=r"^--data_dir .*: -1+\.\.\. in column a, row 3; must be a number") as error:
        read(tmp_path / "my.csv", "time;a\n" + rows(days, ["0,5", "-" + "1" * 500, "2", "3"], ";"))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("flags", [{"freq": "9" * 20 + "D"}, {"date_format": "%Y%Y"}])
def test_a_flag_that_no_library_takes_is_named(tmp_path, flags):
    with pytest.raises(UsageError, match=r"^--(freq|date_format) \S+: no "):
        read(tmp_path / "my.csv", "time,a\n" + rows(months(9).strftime("%Y-%m-%d")), **flags)


def test_ids_that_could_be_years_are_ids(tmp_path):
    days = pd.date_range("2024-01-01", periods=9).strftime("%Y-%m-%d")
    table = lambda times: "item_id,ds,y\n" + "".join(f"{i},{t},{i}\n" for i in (1001, 1002) for t in times)  # noqa: E731
    found, _ = read(tmp_path / "my.csv", table(days))
    assert [(one.name, one.values.index.freqstr, one.values.iloc[0]) for one in found] == [
        ("1001", "D", 1001),
        ("1002", "D", 1002),
    ]
    with pytest.raises(UsageError, match="column ds has numbers that are neither years nor seconds"):
        read(tmp_path / "my.csv", table(range(9)))


def test_dates_with_zeros_in_front_lose_no_row_below_ids(tmp_path):
    text = "id,date,a\n" + rows([f"A,{day:%m%d%Y}" for day in pd.date_range("2006-09-25", periods=150)])
    check(read(tmp_path / "my.csv", text)[0], "2006-09-25", "2007-02-21", "D")


def test_two_columns_may_name_the_series(tmp_path):
    text = "date,store,item,sales\n"
    for store, item in ((1, 1), (1, 2), (2, 1), (2, 2)):
        text += "".join(
            f"{day},{store},{item},{i + item}\n" for i, day in enumerate(pd.date_range("2024-01-01", periods=20).date)
        )
    found, _ = read(tmp_path / "my.csv", text)
    assert [table.name for table in found] == ["1/1", "1/2", "2/1", "2/2"] and found[1].values.iloc[0] == 2


LAYOUTS = {  # name: text of 31 days of January 2024 with 0, 1, 2 …
    "pandas' index in front": lambda d: ",time,a\n" + "".join(f"{i},{day},{i}\n" for i, day in enumerate(d)),
    "row numbers of R": lambda d: '"time","a"\n' + "".join(f'"{i + 1}","{day}",{i}\n' for i, day in enumerate(d)),
    "dates in the last column": lambda d: "a,time\n" + "".join(f"{i},{day}\n" for i, day in enumerate(d)),
    "titles and a footer": lambda d: f"Sales\nSource: x, y\n\ntime,a\n{rows(d)}Total,465\n* provisional\n",
    "a line of units": lambda d: "time;a\n;MW\n" + rows(d, None, ";"),
    "sep=": lambda d: "sep=;\ntime;a\n" + rows(d, None, ";"),
    "a trailing line of commas": lambda d: "time,a,\n" + "".join(f"{day},{i},\n" for i, day in enumerate(d)) + ",,\n",
    "tabs": lambda d: "time\ta\n" + rows(d, None, "\t"),
    "bars": lambda d: "time|a\n" + rows(d, None, "|"),
    "spaces": lambda d: "# time   a\n" + rows(d, None, "   "),
    "old line ends": lambda d: ("time,a\n" + rows(d)).replace("\n", "\r"),
    "blank lines": lambda d: ("time,a\n" + rows(d)).replace("\n", "\r\n\r\n"),
    "times across": lambda d: "name," + ",".join(map(str, d)) + "\na," + ",".join(map(str, range(31))) + "\n",
    "year, month and day": lambda d: "year,month,day,a\n" + rows([f"{s.year},{s.month},{s.day}" for s in d]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_table_is_found_in_what_surrounds_it(tmp_path, name, encoding):
    text = LAYOUTS[name](pd.date_range("2024-01-01", periods=31).date)
    found, said = read(tmp_path / "my.csv", text.encode(encoding))
    check(found, "2024-01-01", "2024-01-31", "D")
    assert found[0].name == "a"
    if name == "titles and a footer":
        assert (
            "2 lines above the first row left out" in said and "2 rows below the last time left out (Total 465" in said
        )


def test_columns_make_a_time_together(tmp_path):
    hours = pd.date_range("2024-01-01", periods=100, freq="h")
    for header, written in (
        ("date,time", "%Y-%m-%d,%H:%M"),
        ("date,hour", "%d.%m.%Y,%-H"),
        ("Date,Time", "%m/%d/%Y,%H%M"),
    ):
        found, _ = read(tmp_path / "my.csv", f"{header},a\n" + rows(hours.strftime(written)))
        check(found, "2024-01-01 00:00", "2024-01-05 03:00", "h")
    text = "Date,HE,a\n" + rows([f"{s:%Y-%m-%d},{s.hour + 1}" for s in hours])
    check(read(tmp_path / "my.csv", text)[0], "2024-01-01 01:00", "2024-01-05 04:00", "h")
    quarters = "year,quarter,a\n" + rows([f"{1990 + i // 4},{i % 4 + 1}" for i in range(40)])
    check(read(tmp_path / "my.csv", quarters)[0], "1990Q1", "1999Q4", "Q-DEC")
    named = "Jahr;Monat;a\n" + rows([f"{2010 + i // 12};{MONATE[i % 12]}" for i in range(48)], None, ";")
    check(read(tmp_path / "my.csv", named.encode("latin-1"))[0], "2010-01", "2013-12", "M")
    matrix = "Year," + ",".join(f"{s:%b}" for s in months(12)) + "\n"
    matrix += "".join(
        f"{year}," + ",".join(str(12 * (year - 2000) + i) for i in range(12)) + "\n" for year in range(2000, 2010)
    )
    check(read(tmp_path / "my.csv", matrix)[0], "2000-01", "2009-12", "M")


def test_latin_1_is_told_from_utf_8(tmp_path):
    text = "Zeit;Müll\n" + rows(pd.date_range("2024-01-01", periods=31).date, [f"{i},5" for i in range(31)], ";")
    for encoding in ("latin-1", "utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"):
        (table,), said = read(tmp_path / "my.csv", text.encode(encoding))
        assert table.name == "Müll" and table.values.iloc[1] == 1.5 and ("Latin-1" in said) == (encoding == "latin-1")


def frame_of_days(zone=None):
    return pd.DataFrame({"a": np.arange(31.0)}, pd.date_range("2024-01-01", periods=31, tz=zone, name="time"))


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, frame_of_days().to_csv())
    return file.getvalue()


def test_files_of_other_kinds_are_read(tmp_path):
    csv, frame = frame_of_days().to_csv().encode(), frame_of_days("Asia/Tokyo")
    contents = {
        "x.csv.gz": gzip.compress(csv),
        "x.zip": zipped("train.csv"),
        "x.csv": zipped("train.csv"),
        "x.dat": csv,
    }
    for name, content in contents.items():
        check(read(tmp_path / name, content)[0], "2024-01-01", "2024-01-31", "D")
    frame.to_parquet(tmp_path / "x.parquet")
    frame.reset_index().to_feather(tmp_path / "x.feather")
    frame_of_days().to_excel(tmp_path / "x.xlsx", startrow=2, sheet_name="Data")
    for name in ("x.parquet", "x.feather", "x.xlsx"):
        check(read_tables(tmp_path / name), "2024-01-01", "2024-01-31", "D")
    with pytest.raises(UsageError, match=r"a .zip of 2 files \(a.csv, b.csv\); unpack it and name one"):
        read(tmp_path / "x.zip", zipped("a.csv", "b.csv"))


def test_parquet_with_lists_is_a_series_a_row(tmp_path):
    targets = [np.arange(5.0), np.arange(7.0)]
    times = [
        pd.date_range(start, periods=len(target), freq="h")
        for start, target in zip(("2024-01-01", "2024-02-01"), targets)
    ]
    pd.DataFrame({"id": ["T1", "T2"], "timestamp": [[*t] for t in times], "target": targets}).to_parquet(
        tmp_path / "x.parquet"
    )
    assert [len(table.values) for table in read_tables(tmp_path / "x.parquet")] == [5, 7]
    pd.DataFrame({"start": [t[0] for t in times], "target": targets, "item_id": ["T1", "T2"]}).to_parquet(
        tmp_path / "x.parquet"
    )
    with pytest.raises(UsageError, match="--freq: series have a start and no times"):
        read_tables(tmp_path / "x.parquet")
    found = read_tables(tmp_path / "x.parquet", freq="D")
    assert str(found[1].values.index[-1]) == "2024-02-07" and list(found[1].values) == [*range(7)]


TSF = """# Monash
@relation X
@attribute series_name string
@attribute start_timestamp date
@frequency {}
@horizon 8
@missing true
@equallength false
@data
T1:{}:25.5,24,?,26,27
T2:1980-03-01 00-00-00:1,2,3,4
"""


@pytest.mark.parametrize(
    ("frequency", "start", "first", "freq"),
    [
        ("monthly", "1979-01-01 12-00-00", "1979-01", "M"),
        ("weekly", "1979-01-03 00-00-00", "1978-12-28/1979-01-03", "W-WED"),
        ("half_hourly", "1979-01-03 00-00-00", "1979-01-03 00:00", "30min"),
        ("10_minutes", "1979-01-03 00-00-00", "1979-01-03 00:00", "10min"),
        ("yearly", "1979-01-01 00-00-00", "1979", "Y-DEC"),
        ("daily", "1979-01-01 00-00-00", "1979-01-01", "D"),
    ],
)
def test_monash_files_tell_start_and_frequency(tmp_path, frequency, start, first, freq):
    found, said = read(tmp_path / "x.tsf", TSF.format(frequency, start))
    assert [table.name for table in found] == ["T1", "T2"] and "@horizon 8" in said
    index = found[0].values.index
    assert str(index[0]) == first and index.freqstr == freq
    np.testing.assert_array_equal(found[0].values, [25.5, 24, np.nan, 26, 27])


def test_old_files_are_read_as_they_were(tmp_path):
    found, said = read(tmp_path / "my.csv", "year,a\n" + rows(range(1900, 1960)))
    check(found, "1900", "1959", "Y-DEC")
    assert "read as years" in said
    found, said = read(tmp_path / "my.csv", "t,a\n" + rows(range(1700000000, 1700000000 + 3600 * 60, 3600)))
    check(found, "2023-11-14 22:00", "2023-11-17 09:00", "h")
    assert "seconds since 1970" in said and "800 s after the full h" in said
    values = np.random.default_rng(0).normal(size=(400, 3))
    frame = pd.DataFrame(values, pd.date_range("2024-01-01", periods=400, freq="h", name="time"), list("xyz"))
    found, _ = read(tmp_path / "my.csv", frame.iloc[::-1].to_csv())
    for table in found:
        np.testing.assert_allclose(table.values, frame[table.name], rtol=1e-12)
    (tmp_path / "my.csv").write_text(frame.drop(frame.index[[5, 9, 50]]).to_csv())
    said = []
    assert read_tables(tmp_path / "my.csv", say=said.append)[0].values.isna().sum() == 3
    assert "3 of 400 rows are missing, the first 2024-01-01 05:00" in said[0]


DAYS = pd.date_range("2024-01-01", periods=31).date
REFUSED = {  # what is wrong: (content, message)
    "inf": ("t,a\n" + rows(DAYS, ["inf" if i == 7 else i for i in range(31)]), "inf in column a, row 9; must be"),
    "too large": ("t,a\n" + rows(DAYS, ["-1e300" if i == 7 else i for i in range(31)]), r"-1e\+300 in column a, row 9"),
    "text": ("t,a\n" + rows(DAYS, ["oops" if i == 7 else i for i in range(31)]), "oops in column a, row 9"),
    "text below titles": ("x\n\nt,a\n" + rows(DAYS, ["oops" if i == 7 else i for i in range(31)]), "column a, row 11"),
    "one without percent": ("t,a\n" + rows(DAYS, [f"{i}{'%' * (i != 7)}" for i in range(31)]), "7 in column a, row 9"),
    "a time twice": ("t,a\n" + rows([*DAYS, DAYS[4]]), "several rows for 2024-01-05; leave one"),
    "hours that are not named": (
        "t,k,a\n" + "".join(f"{day},{hour},{hour}\n" for day in DAYS for hour in range(24)),
        "several rows for 2024-01-01",
    ),
    "a time of an id twice": (
        "id,t,a\n" + "".join(f"{k},{day},1\n" for k in "AB" for day in [*DAYS, DAYS[4]]),
        "several rows for 2024-01-05 of A",
    ),
    "a flag that differs": (
        "t,flag,a\n" + "".join(f"{day},{i % 2},{i}.5\n" for i, day in enumerate([*DAYS, DAYS[4]])),
        "several rows for 2024-01-05; leave one",
    ),
    "no such day": ("t,a\n" + rows([*DAYS[:9], "2024-02-30"]), "2024-02-30 in column t is no time"),
    "half of it turned by Excel": (
        "t,a\n" + rows([f"{d:%Y-%d-%m 00:00:00}" if d.day < 13 else f"{d:%d/%m/%Y}" for d in DAYS]),
        "is no time",
    ),
    "a header in the middle": ("t,a\n" + rows(DAYS[:15]) + "t,a\n" + rows(DAYS[15:]), "row 17 has t in column t"),
    "no time in the middle": ("t,a\n" + rows(DAYS[:15]) + ",7\n" + rows(DAYS[15:]), "row 17 has nothing in column t"),
    "days without a year": ("t,a\n" + rows([f"{d:%d-%b}" for d in DAYS]), "01-Jan in column t has no year"),
    "a thirteenth month": ("year,period,a\n" + rows([f"2010,M{i + 1:02d}" for i in range(13)]), "2010 M13 .* no time"),
    "decimal commas between commas": ("t,a\n" + rows(DAYS, [f"{i},5" for i in range(31)]), "rows have 3 fields, .* 2"),
    "a field too many": ("t,a\n" + rows(DAYS, ["1,2" if i == 20 else i for i in range(31)]), "22 has 3 fields"),
    "a row above that is one": ("t,a\n1 Jan,7\n2 Jan,8\n" + rows(DAYS), "row 2 has 1 Jan in column t"),
    "only text": ("name,city\nA,B\nC,D\n", "column name has no times"),
    "counted rows": ("t,a\n" + rows(range(50)), "neither years nor seconds"),
    "one column": ("t\n" + "\n".join(map(str, DAYS)), "no series"),
    "nothing": ("", "no series"),
    "a header alone": ("t,a\n", "no series"),
    "one row": ("t,a\n2024-01-01,5\n", "--freq: one row does not tell"),
    "JSON": ('[{"t": "2024-01-01", "a": 1}]', "a web page or JSON, no table"),
    "a web page": ("<html><table><tr><td>1</td></tr></table>", "a web page or JSON, no table"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(200), "neither text nor a table that can be read"),
    "half a Parquet": (b"PAR1" + bytes(50), "cannot be read as .parquet"),
    "half a gzip": (b"\x1f\x8b\x08\x00abc", "cannot be read"),
    "half a workbook": (b"PK\3\4abc", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, kind):
    content, message = REFUSED[kind]
    with pytest.raises(UsageError, match=message) as error:
        read(tmp_path / "my.csv", content)
    assert str(error.value).startswith("--") and "\n" not in str(error.value)


def test_a_mistyped_year_is_no_longer_series(tmp_path):
    stamps = [str(stamp) for stamp in pd.date_range("2024-01-01", periods=400, freq="h")]
    text = "time,a\n" + rows(["1721-01-01 00:00:00", *stamps[1:]])
    with pytest.raises(UsageError, match=r"--freq h: .* would make 2,656"):
        read(tmp_path / "my.csv", text, freq="h")
    with pytest.raises(UsageError, match=r"--freq ms: .* would make"):
        read(tmp_path / "my.csv", "time,a\n" + rows(stamps[:50]), freq="ms")


WRITTEN = {  # freq: formats that a stamp may have
    "h": ["%Y-%m-%d %H:%M", "%d.%m.%Y %H:%M", "%m/%d/%Y %I:%M %p", "%Y%m%d %H%M", "%d-%b-%Y %H:%M:%S"],
    "15min": ["%Y-%m-%dT%H:%M:%S", "%d/%m/%Y %H:%M", "%Y%m%d%H%M"],
    "D": ["%Y-%m-%d", "%d/%m/%Y", "%m/%d/%y", "%d.%m.%y", "%Y%m%d", "%d %B %Y", "%b-%d-%Y", "%y%m%d", "%Y/%m/%d"],
    "B": ["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%a %d %b %Y"],
    "W-WED": ["%Y-%m-%d", "%d/%m/%Y", "%d-%b-%y"],
    "MS": ["%Y-%m-%d", "%Y-%m", "%Y%m", "%b-%y", "%B %Y", "%d/%m/%Y", "%m/%d/%Y", "%m/%Y", "%YM%m", "%Y-%b"],
    "QS": ["%Y-%m-%d", "%d.%m.%Y", "%b %Y"],
    "YS": ["%Y", "%d/%m/%Y"],
}


@pytest.mark.filterwarnings("ignore:PeriodDtype")
@pytest.mark.parametrize("seed", range(100))
def test_what_is_written_comes_back(tmp_path, seed):
    """Random start, step, format, marks and missing rows."""
    generator = np.random.default_rng(seed)
    choose = lambda options: options[generator.integers(len(options))]  # noqa: E731
    freq = choose([*WRITTEN])
    number = int(generator.integers(40, 200)) if freq != "YS" else 40
    start = pd.Timestamp("1975-01-01") + pd.Timedelta(int(generator.integers(0, 3000)), "D")
    stamps = pd.date_range(start, periods=number, freq=freq)
    values = generator.normal(0, 10 ** generator.integers(0, 7), (number, 2)).round(int(generator.integers(1, 5)))
    kept = np.sort(generator.permutation(number)[: number - generator.integers(0, number // 8)])
    kept = np.union1d(kept, [0, number - 1])
    separator, (decimal, thousands) = choose(
        [(",", (".", "")), (";", (",", "")), (";", (",", ".")), ("\t", (".", "'"))]
    )
    mark = lambda x: f"{x:_}".replace(".", decimal).replace("_", thousands)  # noqa: E731
    lines = [separator.join(["date", "a", "b"])]
    lines += [separator.join([stamp, *map(mark, pair)]) for stamp, pair in
              zip(stamps[kept].strftime(choose(WRITTEN[freq])), values[kept].tolist())]  # fmt: skip
    found, said = read(tmp_path / "my.csv", "\n".join(lines))
    periods = stamps.to_period(freq.removesuffix("S"))
    for place, table in enumerate(found):
        expected = pd.Series(np.nan, periods)
        expected.iloc[kept] = values[kept, place]
        pd.testing.assert_series_equal(table.values, expected, check_names=False)
    assert (f"{number - len(kept)} of {number}" in said) == (len(kept) < number)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"--data_dir .*none.csv: cannot be read"):
        tables.read_tables(tmp_path / "none.csv")
