"""Pictures and sounds in Parquet files, as the Hugging Face Hub has them, and their download.

>>> table = read_parquet(files_below(root, {".parquet"}).paths, "image", root)
>>> for content in contents(table):  # of each item, the bytes of a JPEG, a PNG, a FLAC ...
...     decode(io.BytesIO(content), (64, 64), kind)
"""

from __future__ import annotations

import collections
import contextlib
import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from tiny_diffusion.files import owned
from tiny_diffusion.folders import several, split_of
from tiny_diffusion.messages import UsageError, downloading, many, reading

MAGIC = {  # how the files begin that are found in Parquet
    "image": (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM", b"\0\0\0\x0cjP"),
    "audio": (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"FORM", b".snd", b"caff"),
}
FORMS = {b"WEBP": "image", b"WAVE": "audio"}  # of RIFF
LABELS = ("label", "labels", "fine_label", "class", "category", "target")  # columns of classes, the first that is there
NOUNS = {"image": "pictures", "audio": "sounds"}
NOT_WHOLE = "Parquet that is not whole ({error}); download it again"
BATCH = 64  # rows that are read together


class Table(NamedTuple):
    """Items in the rows of Parquet files: `rows` of each file, of `column`.

    `labels` are numbers of `classes`, `split` is "train", "validation" or "test" of each item; both may be None.
    `said` are lines to print.
    """

    root: Path
    rows: dict[Path, np.ndarray]
    column: str
    classes: list[str] | None
    labels: np.ndarray | None
    split: np.ndarray | None
    said: list[str]


def read_parquet(paths: list[Path], kind: str, root: Path) -> Table:
    """What Parquet files hold of `kind`, "image" or "audio", by their heads and labels alone. Raises UsageError."""
    if not paths:
        raise UsageError(f"--data_dir {root}: no Parquet files in it; name another folder")
    with reading(f"--data_dir {root}: {NOT_WHOLE}"):
        return table_of(paths, kind, root)


def table_of(paths: list[Path], kind: str, root: Path) -> Table:
    """`read_parquet` of one file or more. Raises UsageError, and what pyarrow raises."""
    from pyarrow import parquet

    files = [parquet.ParquetFile(path) for path in paths]
    schemas = [file.schema_arrow for file in files]
    column, said = media_column(schemas[0], paths[0], kind)
    label, names = label_column(schemas[0], said)
    needed = {column, label} - {None}
    odd = [path.name for path, schema in zip(paths, schemas) if not needed <= set(schema.names)]
    if odd:
        wanted = " and ".join(sorted(needed))
        raise UsageError(f"--data_dir {root}: {odd[0]} has no {wanted}; name a folder of one data set")
    rows = {path: np.arange(file.metadata.num_rows) for path, file in zip(paths, files)}
    classes, labels = None, None
    if label:
        found = [file.read(columns=[label]).column(0).to_pylist() for file in files]
        classes, labels, kept = as_classes(found, names)
        if not kept.all():
            said.append(f"left out {many(int((~kept).sum()), 'item')} without a {label}")
        ends = np.cumsum([len(values) for values in found])[:-1]
        rows = {path: np.flatnonzero(part) for path, part in zip(paths, np.split(kept, ends))}
    parts = [part_of(path, root) for path in paths]
    split = None
    if None not in parts and len({part for part, path in zip(parts, paths) if len(rows[path])}) > 1:
        split = np.repeat(parts, [len(rows[path]) for path in paths])
        said.append(f"split: {', '.join(f'{n:,} {part}' for part, n in collections.Counter(split.tolist()).items())}")
    number = sum(map(len, rows.values()))
    of_classes = f", {len(classes)} classes by {label}: {several(classes)}" if classes else ""
    said.insert(0, f"{root}: {number:,} {NOUNS[kind]} in column {column} of {many(len(paths), 'file')}{of_classes}")
    return Table(root, rows, column, classes, labels, split, said)


def features(schema) -> dict:
    """What the Hub's own description says of each column; {} where there is none."""
    try:
        return json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    except (ValueError, AttributeError):
        return {}


def media_column(schema, path: Path, kind: str) -> tuple[str, list[str]]:
    """The column of pictures or sounds: as the file describes it, or else by what its first row holds."""
    described = {
        name: str(feature.get("_type")).lower() for name, feature in features(schema).items() if is_one(feature)
    }
    found = {name: described[name] for name in described if described[name] in MAGIC and name in schema.names}
    found = found or {name: sniffed(path, name) for name in schema.names if holds_bytes(schema.field(name).type)}
    names = [name for name, what in found.items() if what == kind]
    if names:
        names.sort(key=lambda name: name != kind)
        return names[0], [f"left out the columns {several(names[1:])}"] if names[1:] else []
    other = {what for what in found.values() if what}
    hint = f"; it has {NOUNS[other.pop()]}" if other else ""
    raise UsageError(
        f"--data_dir {path}: no column of {NOUNS[kind]} among {several(schema.names)}{hint}; name other files"
    )


def is_one(feature) -> bool:
    """Whether a description is that of a single thing, not of a list of them."""
    return isinstance(feature, dict)


def holds_bytes(kind) -> bool:
    """Whether a column's type is bytes, or a struct with bytes."""
    from pyarrow import types

    plain = types.is_binary(kind) or types.is_large_binary(kind)
    return plain or (types.is_struct(kind) and kind.get_field_index("bytes") >= 0)


def sniffed(path: Path, column: str) -> str | None:
    """ "image" or "audio" by how the first thing in a column begins."""
    first = next((content for content in column_of(path, column) if content is not None), None)
    content = first.get("bytes") if isinstance(first, dict) else first
    if not content:
        return None
    if content[:4] == b"RIFF":
        return FORMS.get(content[8:12])
    return next((kind for kind, begins in MAGIC.items() if content.startswith(begins)), None)


def label_column(schema, said: list[str]) -> tuple[str | None, list[str] | None]:
    """The column of classes, and their names where the file says them."""
    from pyarrow import types

    described = {name: f for name, f in features(schema).items() if is_one(f) and f.get("_type") == "ClassLabel"}
    plain = [name for name in LABELS if name in schema.names and names_classes(schema.field(name).type)]
    names = sorted(described, key=lambda name: (name not in LABELS, name)) or plain
    if not names:
        odd = [name for name in LABELS if name in schema.names]
        said += [f"left out {several(odd)}: not one class an item"] if odd else []
        return None, None
    if names[1:]:
        said.append(f"classes by {names[0]}; left out {several(names[1:])}")
    titles = described.get(names[0], {}).get("names")
    if not types.is_integer(schema.field(names[0]).type):
        return names[0], None
    return names[0], [titles[key] for key in sorted(titles, key=int)] if isinstance(titles, dict) else titles


def names_classes(kind) -> bool:
    """Whether a column's values are whole numbers or texts."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return any(
        is_kind(kind) for is_kind in (types.is_integer, types.is_string, types.is_large_string, types.is_boolean)
    )


def as_classes(found: list[list], names: list[str] | None) -> tuple[list[str] | None, np.ndarray | None, np.ndarray]:
    """Names of the classes that occur, the number of each item that is kept, and which are: those that have a label.

    -1 is no label where the classes have names.
    """
    values = [value for part in found for value in part]
    kept = np.array([value is not None and not (names and not 0 <= value < len(names)) for value in values], bool)
    if not kept.any():
        return None, None, np.full(len(values), True)
    present, labels = np.unique(np.array([value for value, keep in zip(values, kept) if keep]), return_inverse=True)
    classes = [names[value] if names else str(value) for value in present]
    return (classes, labels, kept) if len(classes) > 1 else (None, None, kept)


def part_of(path: Path, root: Path) -> str | None:
    """The part of a split, by the name of a file such as train-00000-of-00002.parquet, or of its folder."""
    names = [path.stem, *reversed(path.relative_to(root).parts[:-1])]
    return next((part for part in map(split_of, names) if part), None)


def column_of(path: Path, column: str):
    """The values of a column, one after the other, few in memory. Raises UsageError."""
    from pyarrow import parquet

    with reading(f"--data_dir {path}: {NOT_WHOLE}"):
        for batch in parquet.ParquetFile(path).iter_batches(BATCH, columns=[column]):
            yield from (value.as_py() for value in batch.column(0))


def contents(table: Table):
    """Yield the bytes of each item, or None where a row is empty. Raises UsageError where files are named, not held."""
    for path, rows in table.rows.items():
        wanted = set(rows.tolist())
        for number, value in enumerate(column_of(path, table.column)):
            if number not in wanted:
                continue
            content = value.get("bytes") if isinstance(value, dict) else value
            name = value.get("path") if isinstance(value, dict) else None
            if content is None and name:
                beside = path.parent / name
                if not beside.is_file():
                    raise UsageError(f"--data_dir {path}: names the file {name} and does not hold it; put it there")
                content = beside.read_bytes()
            yield content


def recognised(name: str, data_dir: Path) -> str:
    """hf-images:NAME or hf-audio:NAME, as the data set of the Hub has it; it is downloaded. Raises UsageError."""
    home = downloaded(name, data_dir)
    kinds = {"image": "hf-images", "audio": "hf-audio"}
    for kind, prefix in kinds.items():
        with contextlib.suppress(UsageError):
            read_parquet(sorted(home.rglob("*.parquet")), kind, home)
            return f"{prefix}:{name}"
    raise UsageError(f"--dataset hf:{name}: has no column of pictures or sounds; choose another")


def downloaded(name: str, data_dir: Path) -> Path:
    """`download`, by one process at a time; any error of the Hub's becomes a UsageError."""
    remedy = "give another OWNER/NAME[:CONFIG]"
    with downloading(f"hf:{name}", data_dir, remedy), owned(data_dir / "hub", wait=True):
        return download(name, data_dir)


def download(name: str, data_dir: Path) -> Path:
    """The folder with the Parquet files of a data set of the Hub, `name` being OWNER/NAME or OWNER/NAME:CONFIG.

    They are downloaded once, whole, to `data_dir`/hub. Raises UsageError, and what huggingface_hub raises.
    """
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # of what it tries again; what fails in the end is told
    repository, _, config = name.partition(":")
    home = data_dir / "hub" / name.replace("/", "--").replace(":", "--")
    if home.is_dir():
        return home
    revision, files = listed(repository)
    chosen = config_files(files, config, repository)
    partial = home.with_name(f".{home.name}.part")
    fetch(repository, revision, chosen, partial)
    partial.rename(home)
    return home


def listed(repository: str) -> tuple[str, list[str]]:
    """The Parquet files of a data set, its own or those that the Hub made of it, and the revision they are in."""
    from huggingface_hub import HfApi

    for revision in ("main", "refs/convert/parquet"):
        names = HfApi().list_repo_files(repository, repo_type="dataset", revision=revision)
        files = [name for name in names if name.endswith(".parquet")]
        if files:
            return revision, files
    raise UsageError(f"--dataset hf:{repository}: has no Parquet files; download it, and name the folder by --data_dir")


def config_files(files: list[str], config: str, repository: str) -> list[str]:
    """The files of one configuration, by the folder on top. Raises UsageError where it has to be chosen."""
    configs = collections.defaultdict(list)
    for file in files:
        folders = PurePosixPath(file).parts[:-1]
        plain = not folders or folders[0] == "data" or split_of(folders[0])
        configs["default" if plain else folders[0]].append(file)
    config = config or (next(iter(configs)) if len(configs) == 1 else "default")
    if config not in configs:
        raise UsageError(f"--dataset hf:{repository}:CONFIG: choose among {several(configs, 30)}")
    return configs[config]


def fetch(repository: str, revision: str, files: list[str], folder: Path) -> None:
    """Download files of a data set of the Hub into a folder."""
    from huggingface_hub import snapshot_download

    snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=files, local_dir=folder)
