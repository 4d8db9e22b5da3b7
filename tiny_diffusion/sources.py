"""Files of pictures or sounds, wherever they lie: in a folder, a .zip or .tar, or in Parquet.

>>> sources = found(Path("mine"), "image", {".png", ".jpg"}, {})
>>> items = [decode(content(one)) for one in sources.read()]
"""

import functools
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiny_diffusion import folders, parquet
from tiny_diffusion.folders import Member, several
from tiny_diffusion.messages import UsageError

NOUNS = {"image": "images", "audio": "sounds"}
USUAL = (".png", ".jpg", ".tif", ".webp", ".wav", ".flac", ".mp3", ".ogg")  # suffixes to name


class Sources(NamedTuple):
    """Files in order: their names below `root`, and stamps that change when they do.

    `read()` yields each, for `content`. Labels are numbers of `classes`, `split` is "train", "validation" or "test" of
    each; they are None where there are none.
    """

    root: Path
    names: list[str]
    stamps: list
    read: Callable
    classes: list[str] | None = None
    labels: np.ndarray | None = None
    split: np.ndarray | None = None


def content(source: Path | Member | bytes | None) -> Path | io.BytesIO:
    """What a decoder opens: a file's path, or its content. Raises UsageError with the reason alone."""
    if isinstance(source, Path):
        return source
    data = folders.read_member(source) if isinstance(source, Member) else source
    if data is None:
        raise UsageError("an empty row")
    return io.BytesIO(data)


def found(root: Path, kind: str, suffixes, remedies: dict[str, str]) -> Sources:
    """The files of `kind`, "image" or "audio", below `root` or in it; prints what they are and what is left out.

    A folder without such files may hold Parquet files or archives. Raises UsageError.
    """
    if root.suffix == ".parquet" and root.is_file():
        return of_parquet([root], kind, root)
    if root.is_file():
        return of_archives([root], suffixes, root, remedies)
    files = folders.files_below(root, suffixes)
    if files.paths:
        tell("", files.said)
        if line := folders.left_out(files.others, remedies):
            print(f"{root}: {line}")
        return of_paths(files.paths, root)
    if packed := folders.files_below(root, {".parquet"}).paths:
        return of_parquet(packed, kind, root)
    if packed := folders.files_below(root, folders.ARCHIVES).paths:
        return of_archives(packed, suffixes, root, remedies)
    lies = folders.left_out(files.others, remedies) or "nothing lies there"
    usual = several(suffix for suffix in USUAL if suffix in suffixes)
    raise UsageError(f"--data_dir {root}: no {NOUNS[kind]}, {usual} or the like ({lies}); name another folder")


def of_paths(paths: list[Path], root: Path, quiet: bool = False) -> Sources:
    """Files in folders, which are their classes."""
    grouped = folders.class_folders([path.relative_to(root) for path in paths])
    if not quiet:
        tell(root, grouped.said)
    paths = [paths[i] for i in grouped.kept]
    names = [str(path.relative_to(root)) for path in paths]
    return Sources(root, names, [version_of(path) for path in paths], lambda: iter(paths), *grouped[1:4])


def of_archives(archives: list[Path], suffixes, root: Path, remedies: dict[str, str]) -> Sources:
    """Files in archives: their folders are classes, or, of WebDataset, what stands in NAME.cls beside each."""
    found = [folders.members(archive, suffixes) for archive in archives]
    inside, others = [member for members, _ in found for member in members], sum((more for _, more in found), Counter())
    line = folders.left_out(others, remedies)
    if not inside:
        raise UsageError(f"--data_dir {root}: nothing in it that could be read ({line}); unpack it and look")
    beside = folders.labels_beside(inside)
    grouped = folders.class_folders([member.name for member in inside])
    if beside:
        grouped = folders.Grouped(np.arange(len(inside)), *beside, None, [f"classes: {several(beside[0])}"])
    tell(root, [*grouped.said, *filter(None, [line])])
    inside = [inside[i] for i in grouped.kept]
    stamps = {archive: version_of(archive) for archive in archives}
    listing = [f"{stamps[member.archive]} {member.key}" for member in inside]
    return Sources(root, [str(member.name) for member in inside], listing, lambda: iter(inside), *grouped[1:4])


def of_parquet(paths: list[Path], kind: str, root: Path) -> Sources:
    """Files in the rows of Parquet files."""
    table = parquet.read_parquet(paths, kind, home_of(root))
    tell("", table.said)
    rows = [(path, row) for path, numbers in table.rows.items() for row in numbers]
    stamps = {path: version_of(path) for path in paths}
    names, listing = [f"{path.name} row {row}" for path, row in rows], [stamps[path] for path, _ in rows]
    reading = functools.partial(parquet.contents, table)
    return Sources(root, names, listing, reading, table.classes, table.labels, table.split)


def of_hub(name: str, kind: str, config) -> Sources:
    """Those of a data set of the Hub, downloaded to `--data_dir`."""
    home = parquet.downloaded(name, Path(config.data_dir))
    return of_parquet(folders.files_below(home, {".parquet"}).paths, kind, home)


def home_of(root: Path) -> Path:
    """The folder that holds data, given as a folder or as a file in it."""
    return root if root.is_dir() else root.parent


def version_of(path: Path) -> tuple | None:
    """What changes when a file does."""
    return (path.stat().st_size, path.stat().st_mtime_ns) if path.exists() else None


def tell(root: Path | str, lines: list[str]) -> None:
    """Print lines on what lies in `root`, whatever characters its names have."""
    for line in lines:
        print((f"{root}: {line}" if root else line).encode("utf-8", "backslashreplace").decode())
