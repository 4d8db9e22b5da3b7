"""Files of tables, a reader for each kind: frames whose cells are text, numbers or times as the file has them.

A frame's index counts rows as the file does, its header being row 1.
"""

import bz2
import csv
import gzip
import io
import itertools
import lzma
import re
import zipfile
from collections import Counter
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd

from tiny_diffusion.frequencies import freq_of
from tiny_diffusion.messages import UsageError, many, reading
from tiny_diffusion.numerals import PLAIN, USUAL, as_text
from tiny_diffusion.times import looks_like_times, month_number

NUMBERLIKE = re.compile(r"[-+(]?[$€£]?\s?\d[\d.,' ]*(?:[eE][-+]?\d+)?\s?[%€)]?")
SAMPLE = 100  # lines that tell how a file is laid out
CELLS = 30  # cells that tell what a column is
TARGET_NAMES = ("y", "target", "value", "sales")
KINDS = "a table is a .csv, .tsv, .txt, .parquet, .feather, .xlsx or .tsf file"
TIME_NAME = r"date|time|stamp|datum|zeit|fecha|period|(?:^|[^a-z])(?:ds|t|day|week|month|year|yyyy(?:mm(?:dd)?)?|epoch"
TIME_NAME += r"|jahr|monat|mois|mes|ann[ée]e|a[ñn]o|quarter|obs)(?:$|[^a-z])"
TIME_NAME = re.compile(TIME_NAME, re.IGNORECASE)
ID_NAME = re.compile(r"(?:unique|item|series|ts)[_ ]?(?:id|name)|id|series", re.IGNORECASE)


def frame_of(path: Path, decimal: str | None, notes: list[str]) -> pd.DataFrame:
    """What the reader for a file's kind makes of it; its first bytes tell the kind better than its name."""
    with reading("cannot be read ({error})"):
        name, content = unpacked(path.name, path.read_bytes())
    told = [suffix for start, suffix in STARTS.items() if content.startswith(start)]
    suffix = told[0] if told else Path(name).suffix.lower()
    reader = READERS.get(suffix, delimited) if told or suffix not in STARTS.values() else delimited
    with reading(f"cannot be read as {suffix} ({{error}})"):
        return reader(content, decimal, notes)


def unpacked(name: str, content: bytes) -> tuple[str, bytes]:
    """Name and content of a file without its compression, if it has any."""
    for start, unpack in UNPACKERS.items():
        if content.startswith(start):
            return unpacked(name.removesuffix(Path(name).suffix) if "." in name else name, unpack(content))
    if not content.startswith(b"PK\3\4"):
        return name, content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [member for member in archive.namelist() if not member.endswith("/") and "__MACOSX" not in member]
        if "xl/workbook.xml" in members:
            return "table.xlsx", content
        if len(members) != 1:
            raise UsageError(f"a .zip of {len(members)} files ({', '.join(members[:5])}); unpack it and name one")
        return unpacked(members[0], archive.read(members[0]))


def delimited(content: bytes, decimal: str | None, notes: list[str]) -> pd.DataFrame:
    """Text with commas, semicolons, tabs, bars or spaces between columns."""
    text = text_of(content, notes)
    lines = text.split("\n", SAMPLE)[:SAMPLE]
    separator = separator_of(lines + text[-2000:].split("\n")[1:])
    reader = csv.reader(
        (re.sub(r"^[#%]+ ", "", line).strip(" ") + "\n" for line in lines), delimiter=separator, skipinitialspace=True
    )
    rows, ends = [], [0]
    for row in reader:
        rows.append([cell.strip() for cell in row])
        ends.append(reader.line_num)
    names, first = layout(rows, notes)
    textual = [place for place, name in enumerate(names) if place == 0 or not are_plain(name, place, rows[first:])]
    textual = range(len(names)) if separator in ";\t" or decimal == "," else textual
    start = sum(len(line) + 1 for line in lines[: ends[first]])
    empty = {place: [""] if place in textual else list(USUAL) for place in range(len(names))}
    try:
        frame = pd.read_csv(
            io.StringIO(text[start:]), sep=r"\s+" if separator == " " else separator, header=None, index_col=False,
            names=range(len(names)), dtype=dict.fromkeys(textual, str), na_values=empty, keep_default_na=False,
            skip_blank_lines=False, skipinitialspace=True, low_memory=False,
        )  # fmt: skip
    except ValueError as error:
        found = re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", str(error))
        place = found and f"line {int(found[2]) + ends[first]} has {found[3]} fields, others {found[1]}; correct it"
        raise UsageError(place or f"not a table ({str(error).strip()}); {KINDS}") from error
    frame.index = np.arange(len(frame)) + ends[first] + 1
    frame.attrs["separator"] = separator
    return with_names(frame, names)


def text_of(content: bytes, notes: list[str]) -> str:
    """Text in UTF-8, UTF-16 or, where it is neither, Latin-1. Raises UsageError."""
    odd, even = content[1:400:2].count(0), content[:400:2].count(0)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = content.decode("utf-16")
    elif max(odd, even) > len(content[:400]) // 4 > 4 * min(odd, even):
        text = content.decode("utf-16-le" if odd > even else "utf-16-be")
    elif odd or even:
        raise UsageError(f"neither text nor a table that can be read; {KINDS}")
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError:
            notes.append("read as Latin-1")
            text = content.decode("cp1252", "replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    if re.match(r"\s*(?:<|\{|\[\s*[\[{])", text):
        raise UsageError(f"a web page or JSON, no table; {KINDS}")
    return text


def separator_of(lines: list[str]) -> str:
    """The mark between columns: the one that stands equally often in the most lines."""
    lines = [line for line in lines if line.strip()]
    scores = {}
    for mark in "\t;|,":
        counts = Counter(len(row) for row in csv.reader(lines, delimiter=mark) if len(row) > 1)
        scores[mark] = max(counts.values(), default=0)
    best = max(scores, key=scores.get)
    return best if scores[best] > 1 or any(best in line for line in lines[:1]) else " "


def spread(cells) -> list:
    """A few of the cells, from the first to the last."""
    places = {*np.linspace(0, len(cells) - 1, CELLS).astype(int)} if len(cells) else ()
    return [cells[place] for place in sorted(places)]


def are_plain(name: str, place: int, rows: list[list[str]]) -> bool:
    """Whether a column has nothing but numbers that any program reads alike, and is neither a time nor an id."""
    cells = [row[place] for row in rows if place < len(row)]
    return not (TIME_NAME.search(name) or ID_NAME.fullmatch(name)) and all(
        PLAIN.fullmatch(c) or c in USUAL for c in cells
    )


def layout(rows: list[list[str]], notes: list[str]) -> tuple[list[str], int]:
    """The columns' names, and which of the first rows of a file is the first with data; titles are left out."""
    full = [row for row in rows if sum(map(bool, row)) > 1]
    if len(full) < 2:
        raise UsageError(f"no series: a column of times and a column of numbers are needed; {KINDS}")
    width = max(Counter(map(len, full)).most_common(1)[0][0], max(len(row) for row in full[-3:]))
    column = lambda place: spread([row[place] for row in full if place < len(row) and row[place]])  # noqa: E731
    timed = [place for place in range(width) if looks_like_times(column(place), place == 0, 0.6)]
    across = [row for row in full[:20] if sum(looks_like_times([cell], True) for cell in row) > max(2, len(row) // 2)]
    if not timed and across:
        first = rows.index(across[0]) + 1
    elif timed:
        cells = ["".join(row[timed[0] : timed[0] + 1]) for row in rows]
        first = next(place for place, cell in enumerate(cells) if looks_like_times([cell], True))
    else:
        shares = [np.mean([bool(NUMBERLIKE.fullmatch(cell)) for cell in row if cell]) for row in full]
        first = rows.index(next((row for row, share in zip(full, shares) if share >= 0.5), full[1]))
    headers = [row for row in rows[:first] if sum(map(bool, row)) > 1]
    place = timed[0] if timed else 0
    if headers and not across:
        check_above(rows, headers, first, place)
    if not headers:
        notes.append("no header: columns are numbered")
        return [f"column {place + 1}" for place in range(width)], first
    header = max(headers, key=lambda row: nameness(row, place))
    others = sum(any(row) for row in rows[:first]) - 1
    if others:
        notes.append(f"{many(others, 'line')} above the first row left out")
    if len(set(filter(None, header))) < sum(map(bool, header)) and len(headers) > 1:
        header = [" ".join(filter(None, names)) for names in itertools.zip_longest(*headers[:2], fillvalue="")]
    names = [" ".join(name.split()) for name in header]
    return names + [""] * (width - len(names)), first


def check_above(rows: list[list[str]], headers: list[list[str]], first: int, place: int) -> None:
    """Raise UsageError if one of the rows above the first with data has data too; names may be numbers in one row."""
    numbers = [other for other, cell in enumerate(rows[first]) if NUMBERLIKE.fullmatch(cell) and other != place]
    has_data = lambda row: any(NUMBERLIKE.fullmatch("".join(row[number : number + 1])) for number in numbers)  # noqa: E731
    alike = [row for row in headers if has_data(row)]
    cells = ["".join(row[place : place + 1]) for row in alike]
    if len(alike) > 1 or (alike and re.search(r"\d", cells[0])):
        cell = cells[-1] or "nothing"
        raise UsageError(f"row {rows.index(alike[-1]) + 1} has {cell} where a time must be, as in the rows below")


def nameness(row: list[str], place: int) -> tuple:
    """What makes a row more likely the names of columns: how many, how different, no numbers, and one of times."""
    values = any(PLAIN.fullmatch(cell) or looks_like_times([cell], True) for cell in row if cell)
    return sum(map(bool, row)), len({*row}), not values, bool(TIME_NAME.search(" ".join(row[place : place + 1])))


def with_names(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """A frame with those names, no two alike; columns without name and content go. Raises UsageError."""
    void = [pd.isna(frame[place].iloc[0]) and frame[place].isna().all() for place in frame]
    if not names[-1] and not void[-1]:
        if not names[0] or [*as_text(frame[0])] != [*map(str, range(1, len(frame) + 1))]:
            fields = f"rows have {len(names)} fields, the header names {sum(map(bool, names))}"
            raise UsageError(f"{fields}; name each column, and put semicolons between columns with decimal commas")
        names = ["", *names[:-1]]  # the row numbers of R have no name
    kept = [place for place, name in enumerate(names) if not void[place] or (name and not name.startswith("Unnamed"))]
    frame, found = frame[frame.columns[kept]], []
    for place in kept:
        name = names[place] or f"column {place + 1}"
        same = [name, *(f"{name}.{number}" for number in range(1, len(names)))]
        found.append(next(option for option in same if option not in found))
    frame.columns = found
    return frame


def excel(content: bytes, decimal: str | None, notes: list[str]) -> pd.DataFrame:
    """The largest sheet of a workbook."""
    sheets = pd.read_excel(io.BytesIO(content), sheet_name=None, header=None, dtype=object, na_filter=False)
    largest = max(sheets, key=lambda name: sheets[name].size)
    if len(sheets) > 1:
        notes.append(f"sheet {largest} read, {', '.join(name for name in sheets if name != largest)} left out")
    sheet = sheets[largest]
    rows = [["" if cell is None else cell_text(cell) for cell in row] for row in sheet.head(SAMPLE).to_numpy()]
    names, first = layout(rows, notes)
    sheet.index += 1
    return with_names(sheet[first:].mask(sheet[first:] == "").infer_objects(), names).apply(tidy)


def cell_text(cell) -> str:
    """A cell of a workbook as text."""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def tidy(column: pd.Series) -> pd.Series:
    """A column of objects as numbers or times if all are, else as text, with numbers left as such among it."""
    kinds = {type(cell) for cell in column.dropna()}
    if kinds and all(issubclass(kind, (date, np.datetime64)) for kind in kinds):
        return pd.to_datetime(column)
    if kinds and all(issubclass(kind, (int, float, Decimal)) for kind in kinds):
        return column.astype(float)
    return column.map(cell_text, na_action="ignore")


def parquet(content: bytes, decimal: str | None, notes: list[str]) -> pd.DataFrame:
    """A Parquet file."""
    return typed(pd.read_parquet(io.BytesIO(content)))


def arrow(content: bytes, decimal: str | None, notes: list[str]) -> pd.DataFrame:
    """A Feather or Arrow file, or a stream of Arrow, which is what `datasets` keeps under the same suffix."""
    import pyarrow

    try:
        table = pyarrow.ipc.open_file(content).read_all()
    except pyarrow.ArrowInvalid:
        table = pyarrow.ipc.open_stream(content).read_all()
    return typed(table.to_pandas())


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame out of a file that knows types, with its index, if that is more than a count, as columns."""
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    frame.index = np.arange(1, len(frame) + 1)
    frame.columns = [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in frame]
    for name in frame:
        if isinstance(frame[name].dtype, pd.PeriodDtype):
            frame[name] = frame[name].dt.to_timestamp()
        elif frame[name].dtype == object and len(frame) and not isinstance(frame[name].iloc[0], (np.ndarray, list)):
            frame[name] = tidy(frame[name])
    return frame


def tsf(content: bytes, decimal: str | None, notes: list[str]) -> pd.DataFrame:
    """Monash's format: a head of @lines, then a series a line, its attributes and its values between colons."""
    head, found, data = text_of(content, notes).partition("@data")
    if not found:
        raise UsageError("a .tsf file without @data")
    settings = dict((line.lower().split(maxsplit=1) + [""])[:2] for line in head.split("\n") if line.startswith("@"))
    attributes = re.findall(r"(?im)^@attribute\s+(\S+)\s+(\S+)", head)
    rows = [line.strip().split(":") for line in data.split("\n") if line.strip()]
    wrong = [number for number, row in enumerate(rows, 1) if len(row) != len(attributes) + 1]
    if wrong or not rows:
        raise UsageError(f"series {(wrong or [0])[0]} of a .tsf file has not the parts that its @attribute lines name")
    frame = pd.DataFrame([row[:-1] for row in rows], columns=[name for name, _ in attributes])
    names = frame[[name for name, kind in attributes if kind != "date"]].agg("/".join, axis=1)
    if "series_name" in frame and frame["series_name"].is_unique:
        names = frame["series_name"]
    values = [
        pd.to_numeric(pd.Series(row[-1].split(",")).str.strip().replace({"?": None, "NaN": None})) for row in rows
    ]
    dates = [name for name, kind in attributes if kind == "date"]
    if not dates:
        notes.append("no dates in the file: counted from 2000-01-01")
    starts = frame[dates[0]].str[:10] + " " + frame[dates[0]].str[11:].str.replace("-", ":") if dates else "2000-01-01"
    result = pd.DataFrame(
        {"item_id": names, "start": pd.to_datetime(starts), "target": [v.to_numpy(float) for v in values]}
    )
    notes += [f"@{name} {settings['@' + name]}" for name in ("frequency", "horizon") if "@" + name in settings]
    horizon = settings.get("@horizon", "")
    result.attrs["freq"] = tsf_freq(settings.get("@frequency", ""))
    result.attrs["horizon"] = int(horizon) if re.fullmatch(r"[1-9]\d{0,4}", horizon) else None
    return result


def tsf_freq(name: str) -> str | None:
    """ "10_minutes" as 10min."""
    number, unit = re.fullmatch(r"(half|\d+)?_?([a-z]*?)(?:ly|s)?", name.strip().replace("dai", "day")).groups()
    units = {"year": "Y", "quarter": "Q", "month": "M", "week": "W", "day": "D", "hour": "h", "minute": "min"}
    unit = (units | {"second": "s"}).get(unit)
    if number == "half" and unit == "h":
        return "30min"
    return unit and f"{number or ''}{unit}"


def unrolled(frame: pd.DataFrame, freq: str | None, notes: list[str]) -> pd.DataFrame:
    """A row for each time, where a row is a series whose cells are lists. Raises UsageError."""
    lists = [name for name in frame if len(frame) and isinstance(frame[name].iloc[0], (np.ndarray, list))]
    if not lists:
        return frame
    lengths = frame[lists].map(len)
    usual = lengths[next((name for name in lists if name in TARGET_NAMES), lists[-1])]
    kept = [name for name in lists if (lengths[name] == usual).all() and np.ndim(frame[name].iloc[0][0]) == 0]
    if len(kept) < len(lists):
        notes.append(f"{', '.join(set(lists) - set(kept))} left out, not one number for each time")
    frame = frame.drop(columns=[name for name in lists if name not in kept])
    starts = [name for name in frame if pd.api.types.is_datetime64_any_dtype(frame[name])]
    if starts and not any(isinstance(frame[name].iloc[0][0], (np.datetime64, pd.Timestamp)) for name in kept):
        if freq is None:
            raise UsageError(f"--freq: series have a {starts[0]} and no times; give the time between rows: h, D, W, M")
        times = [steps_from(pd.Timestamp(start), length, freq) for start, length in zip(frame[starts[0]], usual)]
        frame = frame.assign(**{starts[0]: times})
        kept = [*kept, starts[0]]
    frame = frame.explode(kept)
    frame.index = np.arange(1, len(frame) + 1)
    return frame.apply(lambda column: column.infer_objects())


def steps_from(start: pd.Timestamp, length: int, freq: str) -> list[pd.Timestamp]:
    """`length` times from `start` on."""
    freq = freq_of(freq, pd.DatetimeIndex([start]))
    periods = pd.period_range(pd.Period(start, freq), periods=length)
    return [*(periods.to_timestamp(how="end").normalize() if "W-" in freq else periods.to_timestamp())]


def some(column: pd.Series) -> list[str]:
    """A few cells of a column as text, without empty ones."""
    return [cell for cell in as_text(column.iloc[spread(range(len(column)))]) if cell]


def upright(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """A frame whose times run down: one with times as column names is turned, one of years by months unfolded."""
    first = frame.columns[0]
    months = [name for name in frame if name != first and not np.isnan(month_number(name))]
    quarters = [name for name in frame if re.fullmatch(r"[qQtT][1-4]", name)]
    for part, columns, number in (("month", months, 12), ("quarter", quarters, 4)):
        if len(columns) == number and looks_like_times(some(frame[first]), True):
            notes.append(f"a row for each year, a column for each {part}")
            long = frame.melt(first, columns, part, "value", ignore_index=False)
            return long.set_axis(["year", part, "value"], axis=1).sort_values("year", kind="stable")
    across = [name for name in frame if looks_like_times([name], True)]
    others = [name for name in frame if name not in across]
    if len(across) < 3 or any(looks_like_times(some(frame[name]), name == first) for name in others):
        return frame
    names = frame[others].apply(as_text).agg(lambda cells: " ".join(filter(None, cells)), axis=1)
    notes.append(f"times run across the columns: turned, series named by {', '.join(others)}")
    turned = frame[across].set_axis(names, axis=0).T
    turned.insert(0, "time", across)
    turned.index = np.arange(1, len(turned) + 1)
    return turned


READERS = {".csv": delimited, ".tsv": delimited, ".txt": delimited, ".tsf": tsf, ".parquet": parquet, ".pq": parquet}
READERS |= {".feather": arrow, ".arrow": arrow, ".xlsx": excel, ".xlsm": excel, ".xls": excel}
STARTS = {b"PAR1": ".parquet", b"ARROW1": ".feather", b"PK\3\4": ".xlsx", b"\xd0\xcf\x11\xe0": ".xls"}
UNPACKERS = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ": lzma.decompress}
