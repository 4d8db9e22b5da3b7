"""What people are told: errors, figures, commands and names of files. Light enough for -h to import."""

import contextlib
import re
import shlex
from pathlib import Path

LONGEST = 300  # characters of what other libraries say


class UsageError(ValueError):
    """An error the user can fix: the message names the argument and the remedy."""


@contextlib.contextmanager
def reading(message: str):
    """Turn any error of the libraries that read a foreign file into a UsageError.

    `message` may have a place for the {error}.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(message.replace("{error}", shortened(error))) from error


def shortened(error: Exception) -> str:
    """What an error of another library says; some of them quote all that they have read."""
    text = f"{type(error).__name__}: {error}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


@contextlib.contextmanager
def downloading(name: str, data_dir, remedy: str):
    """Turn any error of a download into a UsageError that names the `remedy`; empty folders it has made go again."""
    state, root = "is not there, or not whole, and could not be downloaded ({error})", Path(data_dir)
    folders = lambda: {folder for folder in (*root.parents, *root.glob("**")) if folder.is_dir()}  # noqa: E731
    before = folders()
    try:
        with reading(f"--data_dir {data_dir}: {name} {state}; connect to the internet, or {remedy}"):
            yield
    except UsageError:
        for folder in sorted(folders() - before, reverse=True):
            with contextlib.suppress(OSError):  # one that is not empty stays
                folder.rmdir()
        raise


def format_value(value) -> str:
    """A figure or a setting as text; nothing for None."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {format_value(part)}" for name, part in value.items() if part is not None)
    if isinstance(value, list):
        return " ".join(map(format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def many(number: int, noun: str) -> str:
    """A number and what it counts: 1 row, 2,000 rows."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def command_line(flags: dict) -> str:
    """The command that gives these flags."""
    words = ["python", "ddpm.py"]
    for flag, value in flags.items():
        values = [] if value is True else value if isinstance(value, list) else [value]
        words += [f"--{flag}={value}"] if str(value).startswith("-") else [f"--{flag}", *map(str, values)]
    return shlex.join(words)


def file_name(*parts) -> str:
    """A plain file name made of any texts: without separators, and no longer than a file system takes."""
    return re.sub(r"[^\w.+-]+", "-", "_".join(str(part)[:60] for part in parts))
