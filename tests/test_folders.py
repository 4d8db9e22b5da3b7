"""Folders and archives: classes, split, links and strays, and a line for what is left out."""

import collections
import os
import tarfile
import zipfile
from pathlib import PurePosixPath

import numpy as np
import pytest

from tiny_diffusion.folders import class_folders, files_below, labels_beside, left_out, members, read_member, split_of
from tiny_diffusion.messages import UsageError


def made(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def grouped(*names):
    return class_folders([PurePosixPath(name) for name in sorted(names)])


def several(folder, number, suffix="png"):
    return [f"{folder}/{i}.{suffix}" for i in range(number)]


def test_files_are_found_in_order_hidden_ones_are_not_and_others_are_counted(tmp_path):
    made(
        tmp_path,
        "b/2.PNG",
        "b/1.png",
        "a.png",
        "b/notes.txt",
        ".hidden/3.png",
        "b/.4.png",
        "c/5.m4a",
        "c/6.m4a",
        "README",
    )
    os.mkfifo(tmp_path / "pipe.png")
    found = files_below(tmp_path, {".png"})
    assert [str(path.relative_to(tmp_path)) for path in found.paths] == ["a.png", "b/1.png", "b/2.PNG"]
    assert found.others == {".txt": 1, ".m4a": 2, "": 1} and not found.said
    line = left_out(found.others, {".m4a": "convert with ffmpeg"})
    assert line == "left out: 2 .m4a (convert with ffmpeg), 1 without suffix, 1 .txt"
    assert left_out(collections.Counter(), {}) == ""
    with pytest.raises(UsageError, match="no such folder"):
        files_below(tmp_path / "absent", {".png"})


def test_links_are_followed_and_loops_and_dead_ends_are_told(tmp_path):
    made(tmp_path, "elsewhere/dark/1.png", "elsewhere/light/2.png", "mine/own/3.png")
    for name in ("dark", "light"):
        (tmp_path / "mine" / name).symlink_to(tmp_path / "elsewhere" / name)
    (tmp_path / "mine" / "own" / "up").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "dead.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "elsewhere" / "dark" / "across").symlink_to(tmp_path / "elsewhere" / "light")
    (tmp_path / "elsewhere" / "light" / "back").symlink_to(tmp_path / "elsewhere" / "dark")
    found = files_below(tmp_path / "mine", {".png"})
    names = [str(path.relative_to(tmp_path / "mine")) for path in found.paths]
    assert names == ["dark/1.png", "dark/across/2.png", "light/2.png", "light/back/1.png", "own/3.png"]
    assert (
        f"{tmp_path / 'mine'}: left out 3 links (back to a folder above):" in found.said[0]
        and "own/up" in found.said[0]
    )
    assert found.said[1].endswith("left out 1 link (to nothing): dead.png")


def test_folders_are_classes_and_are_told_with_their_counts():
    found = grouped(*several("cats", 12), *several("dogs/small", 8))
    assert found.classes == ["cats", "dogs"] and np.bincount(found.labels).tolist() == [12, 8]
    assert found.said == ["2 classes: cats (12), dogs (8)"] and found.split is None
    assert grouped("1.png", "2.png").classes is None and grouped(*several("yes", 3)).classes is None


@pytest.mark.parametrize(
    "train, test", [("train", "test"), ("Training", "val"), ("seg_train/seg_train", "seg_test/seg_test")]
)
def test_train_and_test_above_the_classes_are_a_split(train, test):
    found = grouped(
        *several(f"{train}/dark", 6),
        *several(f"{train}/light", 5),
        *several(f"{test}/dark", 2),
        *several(f"{test}/light", 3),
    )
    assert found.classes == ["dark", "light"] and np.bincount(found.labels).tolist() == [8, 8]
    part = "validation" if test == "val" else "test"
    assert collections.Counter(found.split.tolist()) == {"train": 11, part: 5}
    assert "split as the folders say: " in " ".join(found.said)


def test_a_lone_folder_is_stepped_into():
    names = [
        f"chest/chest/{part}/{kind}/{i}.png" for part in ("train", "test") for kind in ("ill", "well") for i in range(4)
    ]
    found = grouped(*names)
    assert found.classes == ["ill", "well"] and collections.Counter(found.split.tolist()) == {"train": 8, "test": 8}


def test_a_test_part_without_classes_is_left_out_with_a_line():
    found = grouped(*several("train/cat", 5), *several("train/dog", 5), *several("test", 30))
    assert found.classes == ["cat", "dog"] and len(found.kept) == 10 and found.split is None
    assert found.said[0] == "left out 30 files of test, which lie in no class folder"


def test_a_split_without_classes_is_kept():
    found = grouped(*several("train", 5), *several("test", 3))
    assert found.classes is None and found.split.tolist() == ["test"] * 3 + ["train"] * 5


def test_a_class_called_train_is_no_split():
    assert grouped(*several("train", 3), *several("car", 3)).classes == ["car", "train"]
    assert grouped(*several("train", 3), *several("training", 3)).classes == ["train", "training"]


def test_a_stray_file_is_left_out_and_many_of_them_end_the_classes():
    found = grouped("preview.png", *several("dark", 10), *several("light", 10))
    assert found.classes == ["dark", "light"] and len(found.kept) == 20
    assert found.said[0] == "left out 1 file that lies beside the folders: preview.png"
    found = grouped(*[f"{i}.png" for i in range(10)], *several("dark", 10), *several("light", 10))
    assert found.classes is None and len(found.kept) == 30
    assert found.said == [
        "no classes: 10 of 30 files lie beside the folders dark, light; move them into folders to have classes"
    ]
    found = grouped(
        "preview.png", *several("train/a", 9), *several("train/b", 9), *several("val/a", 2), *several("val/b", 2)
    )
    assert found.classes == ["a", "b"] and len(found.kept) == 22 and set(found.split) == {"train", "validation"}


@pytest.mark.parametrize(
    "name, part",
    {"train": "train", "Val": "validation", "test-images": "test", "seg_pred": None, "contest": None}.items(),
)
def test_a_folder_s_name_tells_its_part(name, part):
    assert split_of(name) == part


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_archives_are_read_as_they_are(suffix, tmp_path):
    made(tmp_path / "in", "b/2.png", "a/1.png", "a/1.txt", ".x/3.png", "__MACOSX/a/._1.png")
    path = tmp_path / f"mine.{suffix}"
    if suffix == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for one in sorted((tmp_path / "in").rglob("*")):
                file.write(one, one.relative_to(tmp_path / "in"))
    else:
        with tarfile.open(path, "w") as file:
            file.add(tmp_path / "in", "./")
    found, others = members(path, {".png"})
    assert [str(member.name) for member in found] == ["a/1.png", "b/2.png"] and others == {".txt": 1}
    assert [read_member(member) for member in found] == [b"a/1.png", b"b/2.png"]
    assert class_folders([member.name for member in found]).classes == ["a", "b"]


def test_a_webdataset_has_its_classes_beside(tmp_path):
    made(tmp_path / "in", *(f"{i:03d}.{kind}" for i in range(4) for kind in ("jpg", "cls", "json")))
    for i in range(4):
        (tmp_path / "in" / f"{i:03d}.cls").write_text(f"{i % 2}\n")
    with tarfile.open(tmp_path / "000.tar", "w") as file:
        file.add(tmp_path / "in", "")
    found, _ = members(tmp_path / "000.tar", {".jpg"})
    classes, labels = labels_beside(found)
    assert classes == ["0", "1"] and labels.tolist() == [0, 1, 0, 1]
    assert labels_beside(members(tmp_path / "000.tar", {".json"})[0]) is not None
    assert labels_beside([]) is None


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.rar", "a.txt", "broken.zip", "broken.tar"])
def test_other_archives_are_refused_in_one_line(name, tmp_path):
    (tmp_path / name).write_bytes(b"anything" * 100)
    with pytest.raises(UsageError, match=f"--data_dir .*{name}: .*"):
        members(tmp_path / name, {".png"})
