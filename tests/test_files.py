"""Files and folders: decoded once, written whole or not at all, kept to one process."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, files, load, no_space, write_images

from tiny_diffusion.files import owned, write, write_json
from tiny_diffusion.messages import UsageError
from tiny_diffusion.pictures import decode


def test_folder_decodes_once_and_again_when_a_file_or_the_size_changes(tmp_path, monkeypatch):
    write_images(tmp_path, 5)
    calls = []
    monkeypatch.setattr("tiny_diffusion.pictures.decode", lambda *arguments: calls.append(1) or decode(*arguments))
    first = load("folder", tmp_path, image_size=16)
    assert np.array_equal(load("folder", tmp_path, image_size=16).items, first.items) and len(calls) == 5
    assert isinstance(first.items, np.memmap) and first.items.filename.parent == tmp_path / ".cache"
    write_images(tmp_path, 6)
    assert len(load("folder", tmp_path, image_size=16).items) == 6 and len(calls) == 11
    load("folder", tmp_path, image_size=8)
    assert len(calls) == 17


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path):
    write_images(tmp_path, 5)
    (tmp_path / ".cache").write_text("in the way")
    with pytest.raises(UsageError, match=r"--data_dir .*make it writable"):
        load("folder", tmp_path, image_size=16)


@pytest.mark.parametrize("damage", ["empty", "halved", "absent", "longer", "text", "left behind"])
def test_a_damaged_cache_is_made_anew_with_one_line(damage, tmp_path, capsys):
    write_images(tmp_path, 5)
    items = np.array(load("folder", tmp_path, image_size=8).items)
    (target,) = tmp_path.glob(".cache/*")
    whole = target.read_bytes()
    content = {"empty": b"", "halved": whole[: len(whole) // 2], "longer": whole + b"1", "text": b"n" * len(whole)}
    if damage in ("absent", "left behind"):
        target.unlink()
        (target.parent / "images-of-another-time.raw.part").write_bytes(b"half")
    else:
        target.write_bytes(content[damage])
    assert np.array_equal(load("folder", tmp_path, image_size=8).items, items)
    assert capsys.readouterr().out.count("is not whole: decoding again") == (damage in content)
    assert files(target.parent) == {target.name: whole}


def test_decoding_that_fails_leaves_nothing(tmp_path, monkeypatch):
    write_images(tmp_path, 3)
    before = files(tmp_path)
    (tmp_path / "000.png").write_bytes(b"")
    (tmp_path / "001.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match="fewer than 2 readable images"):
        load("folder", tmp_path, image_size=8)
    monkeypatch.setattr("tiny_diffusion.files.os.fsync", no_space)
    write_images(tmp_path, 3)
    with pytest.raises(UsageError, match=r"images-.*0\.0 MB could not be written \(No space left"):
        load("folder", tmp_path, image_size=8)
    assert files(tmp_path) == before and not (tmp_path / ".cache").exists()


def test_a_file_is_whole_at_every_moment(tmp_path):
    path = tmp_path / "a.txt"
    write(path, lambda file: file.write(b"first"))
    with pytest.raises(RuntimeError):
        write(path, fail_half_way)
    assert files(tmp_path) == {"a.txt": b"first"}
    write(path, lambda file: file.write(b"second"))
    assert files(tmp_path) == {"a.txt": b"second"}


def fail_half_way(file):
    file.write(b"sec")
    raise RuntimeError("lost")


def test_json_has_null_for_what_is_no_finite_number(tmp_path):
    write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.5]}


def test_a_folder_is_kept_to_one_process_and_gone_where_nothing_is_left(tmp_path):
    folder = tmp_path / "some" / "folder"
    with owned(folder):
        with pytest.raises(UsageError, match="another process"), owned(folder):
            pass
        assert folder.is_dir()
    assert not folder.parent.exists()
    folder.mkdir(parents=True)
    (folder / "result.txt").write_text("kept")
    (folder / "result.png.part").write_text("half")
    with owned(folder):
        pass
    assert files(tmp_path) == {"some/folder/result.txt": b"kept"}


WORK = """
import time
from pathlib import Path
from tiny_diffusion.files import owned
for _ in range(20):
    with owned(Path("shared"), wait=True):
        number = int(Path("shared/count").read_text())
        time.sleep(0.002)
        Path("shared/count").write_text(str(number + 1))
"""


def test_processes_that_wait_for_a_folder_have_it_one_after_the_other(tmp_path):
    (tmp_path / "shared").mkdir()  # with a file in it, it stays
    (tmp_path / "shared" / "count").write_text("0")
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    workers = [subprocess.Popen([sys.executable, "-c", WORK], cwd=tmp_path, env=path) for _ in range(4)]
    assert [worker.wait(60) for worker in workers] == [0] * 4
    assert files(tmp_path) == {"shared/count": b"80"}


KILLED = """
import os
from pathlib import Path
from tiny_diffusion.files import owned
with owned(Path("shared")):
    Path("shared/a.part").write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_a_killed_process_keeps_no_folder(tmp_path):
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, env=path).returncode == -9
    assert set(files(tmp_path)) == {"shared/.lock", "shared/a.part"}
    with owned(tmp_path / "shared"):
        assert set(files(tmp_path)) == {"shared/.lock"}
    assert not (tmp_path / "shared").exists()
