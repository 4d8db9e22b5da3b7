"""Files and folders: written whole or not at all, kept to one process, and decoded once."""

import collections
import contextlib
import functools
import hashlib
import io
import json
import math
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from tiny_diffusion.folders import several
from tiny_diffusion.messages import UsageError

STATIC = Path(__file__).parents[1] / "static"
LOCK = ".lock"


def write(path: Path, produce) -> None:
    """Write what `produce(file)` writes; `path` is whole at every moment, the old one or the new. Raises UsageError."""
    buffer = io.BytesIO()
    produce(buffer)
    with replacing(path, len(buffer.getbuffer())) as file:
        file.write(buffer.getbuffer())


def write_json(path: Path, content: dict) -> None:
    """Write JSON. Numbers that are not finite, which JSON does not have, become null."""
    content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    write(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


@contextlib.contextmanager
def replacing(path: Path, size: int):
    """A file for at most `size` bytes that becomes `path` once all is written. Raises UsageError."""
    partial = path.with_name(f"{path.name}.part")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        remedy = "make room and repeat the command; a checkpoint written before is whole, for --resume"
        raise UsageError(f"{path}: {size / 1e6:.1f} MB could not be written ({error.strerror}); {remedy}") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def owned(folder: Path, wait: bool = False):
    """Keep `folder`, made if absent, to this process; delete what another one has left half-written in it.

    Where another process has it, `wait` for that, or raise UsageError.
    """
    lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
    while not lock.is_locked:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except FileNotFoundError:  # its last owner has just removed the folder
            continue
        except Timeout as error:
            message = f"{folder}: another process is at work on it; wait, or choose another --experiment_name"
            raise UsageError(message) from error
    try:
        for partial in (*folder.glob("*.part"), *folder.glob("*/*.part")):
            if not partial.is_dir():
                partial.unlink()
        yield
    finally:
        with contextlib.suppress(OSError):  # a folder that is not empty stays
            (folder / LOCK).unlink()
            for empty in (folder, *folder.parents):
                empty.rmdir()
        lock.release()


def read_ahead(read, requests, depth: int = 4):
    """Yield read(request) for each request, in order, with `depth` of them under way in threads."""
    with ThreadPoolExecutor(depth) as pool:
        pending = collections.deque()
        for request in requests:
            pending.append(pool.submit(read, request))
            if len(pending) > depth:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def attempt(read, request):
    """What `read(request)` gives, or as text the reason why that fails."""
    try:
        return read(request)
    except UsageError as error:
        return str(error)
    except Exception as error:  # of a broken file; each library has its own
        return " ".join(str(error).split()).rsplit(": ", 1)[-1][:80] or type(error).__name__


def decoded(kind: str, root: Path, names: list[str], stamps: list, requests, cache: Path, decode, shape):
    """Which of the items called `names` could be read, and these as a memory map (n, *shape) uint8.

    `decode(request)` is called once for each of `requests()`, in parallel, and raises for what it cannot read. The
    results go into `cache`, under a name made of `kind`, the shape, and all names and stamps. Raises UsageError.
    """
    listing = [f"{name} {stamp}" for name, stamp in zip(names, stamps)]
    key = hashlib.sha256(os.fsencode("\n".join([f"{kind} {shape}", *listing]))).hexdigest()[:16]
    noun, size = kind.split()[0], math.prod(shape)
    target = cache / f"{noun}-{key}.raw"
    look = functools.partial(read_decoded, target, len(names), size)
    try:
        if look() is None:
            with owned(cache, wait=True):
                if look() is None:  # not even now: no other process has decoded them in the meantime
                    print(f"{target} is not whole: decoding again\n" * target.exists(), end="")
                    write_decoded(target, root, names, requests(), decode, noun, size)
        kept = np.flatnonzero(look())
    except OSError as error:
        remedy = f"make it writable, to keep decoded {noun} in, or copy your data"
        raise UsageError(f"--data_dir {root}: {cache}: {error.strerror}; {remedy}") from error
    return kept, np.memmap(target, np.uint8, "r", shape=(len(kept), *shape))


def read_decoded(target: Path, number: int, size: int) -> np.ndarray | None:
    """Which of `number` files could be read, if `target` holds `size` bytes of each of these; None if it does not."""
    if not target.exists():
        return None
    readable = np.fromfile(target, np.uint8, offset=max(0, target.stat().st_size - number))
    whole = len(readable) == number and target.stat().st_size == readable.sum() * size + number
    return readable.astype(bool) if whole and readable.max() <= 1 else None


def write_decoded(target: Path, root: Path, names: list[str], requests, decode, noun: str, size: int) -> None:
    """Write what `decode(request)` gives for each to `target`, one after the other, then which could be read."""
    items, readable, skipped = read_ahead(functools.partial(attempt, decode), requests, os.cpu_count()), [], []
    with replacing(target, len(names) * (size + 1)) as file, quiet_libraries() as terminal:
        for item in tqdm(items, "decoding", len(names), unit=f" {noun}", disable=None, file=terminal):
            readable.append(not isinstance(item, str))
            if readable[-1]:
                file.write(item.tobytes())
            else:
                skipped.append(f"{names[len(readable) - 1]} ({item})")
        file.write(bytes(readable))
        told = f"{len(skipped)} unreadable {noun}: {several(skipped)}"
        if sum(readable) < 2:
            raise UsageError(f"--data_dir: fewer than 2 readable {noun} in {root} ({told}); name another folder")
        if skipped:
            print(f"skipped {told}")


@contextlib.contextmanager
def quiet_libraries():
    """Keep what libraries in C say of damaged files from stderr; yield stderr as it was."""
    sys.stderr.flush()
    with open(os.dup(2), "w") as terminal, open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        try:
            yield terminal
        finally:
            os.dup2(terminal.fileno(), 2)


def clear(folder: Path, kept: tuple[str, ...]) -> None:
    """Delete all in `folder` but what is `kept`."""
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
