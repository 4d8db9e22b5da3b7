"""Folders and archives of files: what lies in them, its classes, its split, and what is left out and why.

>>> found = files_below(Path("mine"), {".png", ".jpg"})
>>> grouped = class_folders([path.relative_to("mine") for path in found.paths])
>>> print(*found.said, *grouped.said, sep="\\n")
"""

from __future__ import annotations

import collections
import functools
import os
import re
import tarfile
import zipfile
from pathlib import Path, PurePath, PurePosixPath
from typing import NamedTuple

import numpy as np

from tiny_diffusion.messages import UsageError, many, reading

SPLITS = {"train": "train", "training": "train", "val": "validation", "valid": "validation", "dev": "validation"}
SPLITS |= {"validation": "validation", "test": "test", "testing": "test"}
FEW = 0.1  # share of the files that may lie beside the class folders and be left out
NAMED = 10  # files, classes or suffixes that a line names


class Found(NamedTuple):
    """Files below a folder, those that end otherwise by suffix, and lines to print."""

    paths: list[Path]
    others: collections.Counter
    said: list[str]


class Grouped(NamedTuple):
    """Which of the files are kept, their classes, and "train", "validation" or "test" of each, or None."""

    kept: np.ndarray
    classes: list[str] | None
    labels: np.ndarray | None
    split: np.ndarray | None
    said: list[str]


class Member(NamedTuple):
    """A file in an archive, found there by its name in a .zip, and by its first byte in a .tar."""

    archive: Path
    name: PurePosixPath
    key: str | int
    size: int


def several(items, most: int = NAMED) -> str:
    """The first of many, as a list in a line."""
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + " ..." * (len(items) > most)


def files_below(root: Path, suffixes) -> Found:
    """All files below `root` whose suffix, in small letters, is one of `suffixes`, in order; nothing hidden.

    Links are followed, except where they lead back to a folder they lie in. Raises UsageError.
    """
    if not root.is_dir():
        raise UsageError(f"--data_dir {root}: no such folder; name the one that holds your files")
    paths, others, loops, dead, closed = [], collections.Counter(), [], [], []
    waiting = [(str(root), (os.path.realpath(root),))]
    while waiting:
        folder, above = waiting.pop()
        try:
            entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
        except OSError as error:
            closed.append(f"{os.path.relpath(folder, root)} ({error.strerror})")
            continue
        for entry in entries:
            if entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                if real in above:
                    loops.append(os.path.relpath(entry.path, root))
                else:
                    waiting.append((entry.path, (*above, real)))
            elif not entry.is_file():
                dead += [os.path.relpath(entry.path, root)] * entry.is_symlink()
            elif (suffix := os.path.splitext(entry.name)[1].lower()) in suffixes:
                paths.append(Path(entry.path))
            else:
                others[suffix] += 1
    lost = [("link", "back to a folder above", loops), ("link", "to nothing", dead), ("folder", "not readable", closed)]
    said = [f"{root}: left out {many(len(what), noun)} ({why}): {several(what)}" for noun, why, what in lost if what]
    return Found(sorted(paths), others, said)


def left_out(others: collections.Counter, remedies: dict[str, str]) -> str:
    """A line on files that are not read: how many of each suffix, and what helps for those of `remedies`."""
    counts = sorted(others.items(), key=lambda item: (item[0] not in remedies, -item[1], item[0]))
    named = [
        f"{number:,} {suffix or 'without suffix'}" + (f" ({remedies[suffix]})" if suffix in remedies else "")
        for suffix, number in counts
    ]
    return f"left out: {several(named)}" if named else ""


def split_of(folder: str) -> str | None:
    """ "train", "validation" or "test" if that is what a folder's name says, such as seg_train or test-images."""
    words = [SPLITS[word] for word in re.split(r"[\W_]+", folder.lower()) if word in SPLITS]
    return words[0] if len(words) == 1 else None


def class_folders(names: list[PurePath]) -> Grouped:
    """The classes of files by the folders they lie in, `names` being relative to the folder that the user named.

    A lone folder on top is stepped into. Where the folders on top are train, val or test, the split is theirs, and
    classes are the folders below. Files beside the class folders are left out if they are few; otherwise there are no
    classes. There are none, either, unless there are two folders.
    """
    folders, said = [name.parts[:-1] for name in names], []
    while folders and all(folders) and len({folder[0] for folder in folders}) == 1:
        folders = [folder[1:] for folder in folders]
    split, strays = by_split(folders)
    if split is not None:
        folders = [below(folder) for folder in folders]
    kept = np.full(len(names), True)
    kept[strays] = False
    classes = sorted({folder[0] for folder, keep in zip(folders, kept) if keep and folder})
    if len(classes) > 1:
        loose = np.array([keep and not folder for folder, keep in zip(folders, kept)])
        groups = np.zeros(len(names), "U10") if split is None else split
        for group in np.unique(groups[kept]):
            inside = kept & (groups == group)
            if loose[inside].all():
                said.append(f"left out {many(inside.sum(), 'file')} of {group}, which lie in no class folder")
                kept &= ~inside
        loose &= kept
        if loose.sum() <= FEW * kept.sum():
            strays += np.flatnonzero(loose).tolist()
            kept &= ~loose
        else:
            said.append(
                f"no classes: {loose.sum()} of {kept.sum()} files lie beside the folders {several(classes)}; "
                "move them into folders to have classes"
            )
            classes = []
    if strays:
        verb = "lies" if len(strays) == 1 else "lie"
        listed = several([names[i] for i in strays])
        said.append(f"left out {many(len(strays), 'file')} that {verb} beside the folders: {listed}")
    return grouped(kept, folders, classes, split, said)


def grouped(kept, folders, classes, split, said) -> Grouped:
    """Labels and split of what is kept, and the lines that tell them."""
    kept, labels = np.flatnonzero(kept), None
    if len(classes) > 1:
        number = {name: i for i, name in enumerate(classes)}
        labels = np.array([number[folders[i][0]] for i in kept])
        counts = np.bincount(labels, minlength=len(classes))
        said = [*said, f"{len(classes)} classes: {several([f'{c} ({n:,})' for c, n in zip(classes, counts)], 20)}"]
    if split is not None:
        split = split[kept]
        counts = collections.Counter(split.tolist())
        said = [*said, f"split as the folders say: {', '.join(f'{n:,} {part}' for part, n in counts.items())}"]
        split = split if len(counts) > 1 else None
    return Grouped(kept, classes if len(classes) > 1 else None, labels, split, said)


def by_split(folders: list[tuple]) -> tuple[np.ndarray | None, list[int]]:
    """The part of each file where the folders on top are a split, and the few files that lie beside them."""
    parts = {folder[0]: split_of(folder[0]) for folder in folders if folder}
    found, strays = set(parts.values()), [i for i, folder in enumerate(folders) if not folder]
    if None in found or "train" not in found or len(found) < 2 or len(strays) > FEW * len(folders):
        return None, []
    return np.array([parts[folder[0]] if folder else "" for folder in folders]), strays


def below(folder: tuple) -> tuple:
    """A path without the folder on top, and without a second of its name, as unpacked archives have it."""
    return folder[2:] if folder[:1] == folder[1:2] else folder[1:]


PACKED = {".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst"}


def members(archive: Path, suffixes) -> tuple[list[Member], collections.Counter]:
    """The files of a .zip or .tar whose suffix is one of `suffixes`, in order of name, and the others by suffix.

    Nothing is unpacked. Raises UsageError.
    """
    suffix = archive.suffix.lower()
    if suffix in PACKED:
        raise UsageError(f"--data_dir {archive}: cannot be read in any order; unpack it and name the folder")
    if suffix not in ARCHIVES:
        raise UsageError(f"--data_dir {archive}: neither a folder nor a .zip or .tar of files")
    with reading(f"--data_dir {archive}: not a whole {suffix} ({{error}}); unpack it yourself"):
        files = [file for file in ARCHIVES[suffix](archive) if not hidden(file.name)]
    found = [file for file in files if file.name.suffix.lower() in suffixes]
    others = collections.Counter(file.name.suffix.lower() for file in files)
    others.subtract(file.name.suffix.lower() for file in found)
    return sorted(found, key=lambda member: member.name), +others


def zip_members(archive: Path) -> list[Member]:
    """The files of a .zip. Raises UsageError for one with a password."""
    infos = [info for info in opened_zip(archive).infolist() if not info.is_dir()]
    if any(info.flag_bits & 1 for info in infos):
        raise UsageError(f"--data_dir {archive}: has a password; unpack it and name the folder")
    return [Member(archive, PurePosixPath(info.filename), info.filename, info.file_size) for info in infos]


def tar_members(archive: Path) -> list[Member]:
    """The files of a .tar that is not compressed."""
    with tarfile.open(archive, "r:") as tar:
        return [Member(archive, PurePosixPath(file.name), file.offset_data, file.size) for file in tar if file.isreg()]


ARCHIVES = {".zip": zip_members, ".tar": tar_members}


def hidden(name: PurePath) -> bool:
    """Whether a file or a folder above it is hidden, or macOS's own."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.parts)


@functools.lru_cache(8)
def opened_zip(archive: Path) -> zipfile.ZipFile:
    """An archive whose list of files is read once; it may be read from in several threads."""
    return zipfile.ZipFile(archive)


def read_member(member: Member) -> bytes:
    """The content of a file in an archive."""
    if isinstance(member.key, str):
        return opened_zip(member.archive).read(member.key)
    with open(member.archive, "rb") as file:
        file.seek(member.key)
        return file.read(member.size)


def labels_beside(found: list[Member]) -> tuple[list[str], np.ndarray] | None:
    """Classes and labels of WebDataset's tars, where NAME.cls stands beside NAME.jpg; None unless each has one."""
    archives = dict.fromkeys(member.archive for member in found)
    beside = {(archive, member.name): member for archive in archives for member in members(archive, {".cls"})[0]}
    keys = [(member.archive, member.name.with_name(f"{member.name.name.split('.')[0]}.cls")) for member in found]
    if not beside or any(key not in beside for key in keys):
        return None
    words = [read_member(beside[key]).decode("utf-8", "replace").strip() for key in keys]
    classes, labels = np.unique(words, return_inverse=True)
    return classes.tolist(), labels
