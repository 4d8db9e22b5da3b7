"""Columns of numbers as people write them: decimal commas, thousands, percent signs, currencies, marks for nothing."""

import re

import numpy as np
import pandas as pd

from tiny_diffusion.arrays import LARGEST
from tiny_diffusion.messages import UsageError

PLAIN = re.compile(r"[-+]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
USUAL = ("", "NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "none", "#N/A", "<NA>", "NaT")  # for nothing
MISSING = (*USUAL, "#NV", "#DIV/0!", "#VALUE!", "#REF!", "missing", "-", "--", "–", "—", *"…?:*", ".", "..", "...")
CURRENCY = r"[$€£¥₹₽₩]|USD|EUR|GBP|CHF|JPY|kr\.?|R\$|zł"
NINES = (-99, -99.9, -999, -999.9, -9999, -9999.9, -99999)  # what some write where a number is missing
THOUSANDS = {".": "points", ",": "commas", " ": "spaces", "'": "apostrophes"}


def as_text(column: pd.Series) -> pd.Series:
    """Cells as text without spaces around, whole numbers without decimals, nothing as an empty text."""
    if pd.api.types.is_float_dtype(column) and (column.dropna() % 1 == 0).all() and (column.abs().max() < 1e15):
        column = column.astype("Int64")
    return column.astype(object).where(column.notna(), "").astype(str).str.strip()


def numbers_of(frame: pd.DataFrame, decimal: str | None, notes: list[str]) -> pd.DataFrame:
    """Those columns of a frame that are numbers, as float64, NaN where a number is missing.

    Raises UsageError where a cell among numbers is none, is too large, or where a column can be read in two ways.
    """
    separator, found, said, texts = frame.attrs.get("separator"), {}, {}, {}
    for name in frame:
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
            found[name] = column.to_numpy(float, na_value=np.nan)
        elif not pd.api.types.is_datetime64_any_dtype(column):
            texts[name] = cleaned(column, said)
    readings = {name: readings_of(text, decimal, separator) for name, text in texts.items()}
    proven = {mark for values in readings.values() for mark in values if len(values) == 1 and mark}
    for name, values in readings.items():
        if values:
            mark = next(iter(values)) if len(values) == 1 else decided(values, texts[name], proven, separator)
            found[name] = values[mark]
            tell_marks(texts[name], mark, separator, said)
    notes += [f"{what} in {', '.join(names[:5])}{' and others' * (len(names) > 5)}" for what, names in said.items()]
    left = [str(name) for name in frame if name not in found]
    if left:
        notes.append(f"{', '.join(left[:5])}{' and others' * (len(left) > 5)} left out, not numbers")
    for name, values in found.items():
        wrong = np.flatnonzero(np.abs(values) > LARGEST)
        if len(wrong):
            refuse(frame[name], wrong[0])
        marks = [mark for mark in NINES if (values == mark).any() and not (values[values != mark] < mark / 2).any()]
        if marks:
            notes.append(f"{marks[0]:g} in {name} read as a number; empty the cell if it means that none is known")
    return pd.DataFrame({name: found[name] for name in frame if name in found}, index=frame.index)


def refuse(column: pd.Series, place: int) -> None:
    """Raise UsageError for a cell that is no number, or too large."""
    cell = f"{column.iloc[place]} in column {column.name}, row {column.index[place]}"
    raise UsageError(f"{cell}; must be a number, or empty where it is missing")


def cleaned(column: pd.Series, said: dict[str, list[str]]) -> pd.Series:
    """Cells with no signs around their numbers, NaN where nothing is meant; what went is noted in `said`."""
    text = (
        as_text(column)
        .str.replace(r"[\u00a0\u202f\u2009]", " ", regex=True)
        .str.replace("−", "-")
        .str.replace("’", "'")
    )
    marks = sorted(set(text[text.isin(MISSING[len(USUAL) :])]))
    text = text.where(~text.isin(MISSING))
    known = text.dropna()
    changes = [("percent signs", r"\s*%$", ""), ("currencies", rf"^(-?)\s*(?:{CURRENCY})\s*|\s*(?:{CURRENCY})$", r"\1")]
    for what, pattern, instead in changes:
        found = known.str.count(pattern) > 0
        if not found.all() and found.mean() > 0.5:
            refuse(column, column.index.get_loc(found.index[~found][0]))
        if len(known) and found.all():
            known = known.str.replace(pattern, instead, regex=True)
            said.setdefault(f"{what} dropped", []).append(column.name)
    for what, pattern in (
        ("numbers in brackets taken as negative", r"^\((.*\d.*)\)$"),
        ("minus signs after numbers", r"^([\d.,]+)-$"),
    ):
        if known.str.count(pattern).any() and known.str.contains(r"\d").mean() > 0.5:
            known = known.str.replace(pattern, r"-\1", regex=True)
            said.setdefault(what, []).append(column.name)
    if marks and known.str.contains(r"\d").mean() > 0.5:
        said.setdefault(f"{' '.join(marks)} taken as missing", []).append(column.name)
    lower = known.str.lower()
    if len(known) and lower.isin(["true", "false"]).all():
        known = lower.map({"true": "1", "false": "0"})
    return known.reindex(text.index)


def readings_of(text: pd.Series, decimal: str | None, separator: str | None) -> dict[str, np.ndarray]:
    """Values by the decimal mark that they are read with: one reading, two that differ, or none where it is text.

    The mark is "" where there is none in the column. Raises UsageError for a cell that does not fit.
    """
    known = text.dropna()
    if not len(known):
        return {"": np.full(len(text), np.nan)}
    marked = known[known.str.contains(r"[.,' ]")]
    if not len(marked) or (separator == "," and decimal != "," and not marked.str.contains(r"[,' ]").any()):
        numbers = pd.to_numeric(text, errors="coerce")
        if numbers.notna().sum() == len(known):
            return {"." if len(marked) else "": numbers.to_numpy(float)}
    values, best = {}, known.str.fullmatch(r"(?!)")
    for mark in [decimal] if decimal else ".,":
        for thousands in ("", *(set(THOUSANDS) - {mark})):
            fits = known.str.fullmatch(pattern_of(mark, thousands))
            best = max(best, fits, key=lambda fits: fits.sum())
            if fits.all():
                plain = text.str.replace(thousands, "", regex=False) if thousands else text
                plain = plain.str.replace(r"\s", "", regex=True).str.replace(mark, ".", regex=False)
                values[mark] = plain.astype(float).to_numpy()  # infinite where pandas knows no such number
                break
    if not values and best.mean() > 0.5:
        refuse(text, text.index.get_loc(best.index[~best][0]))
    if len(values) == 2 and np.array_equal(*values.values(), equal_nan=True):
        return {"": values["."]}
    return values


def pattern_of(mark: str, thousands: str) -> str:
    """The expression of numbers with that decimal mark and that mark between thousands, or none."""
    grouped = rf"|[1-9]\d{{0,2}}(?:{re.escape(thousands)}\d{{3}})+" if thousands else ""
    return rf"[-+]?\s?(?:(?:\d+{grouped})(?:{re.escape(mark)}\d*)?|{re.escape(mark)}\d+)(?:[eE][-+]?\d+)?"


def decided(values: dict[str, np.ndarray], text: pd.Series, proven: set[str], separator: str | None) -> str:
    """Which of two decimal marks is meant. Raises UsageError where nothing tells.

    Other columns tell, or commas between columns. So do whole numbers below 1000 among those with a mark: would it
    be that of decimals, they had one too.
    """
    if len(proven) == 1:
        return next(iter(proven))
    if separator == ",":
        return "."
    marked = text.str.contains(r"[.,]", na=False)
    whole = values["."][text.notna() & ~marked]
    if (whole != 0).sum() > 2 and np.abs(whole).max() < 1000:
        return "," if text[marked].str.contains(".", regex=False).any() else "."
    example = f"{text[marked].iloc[0]} in column {text.name}"
    raise UsageError(f"--decimal: {example} has a mark of thousands or of decimals; give the mark of decimals, . or ,")


def tell_marks(text: pd.Series, mark: str, separator: str | None, said: dict[str, list[str]]) -> None:
    """Note in `said` what is between the digits of a column, where it is not the usual point."""
    known = text.dropna()
    if mark == "," and known.str.contains(",").any():
        said.setdefault("decimal commas", []).append(text.name)
    for thousands, name in THOUSANDS.items():
        if mark and thousands != mark and known.str.contains(thousands, regex=False).any():
            said.setdefault(f"{name} between thousands", []).append(text.name)
    if mark == "." and separator in ("\t", ";") and known.str.contains(".", regex=False).any():
        said.setdefault("decimal points", []).append(text.name)
