"""Files of pictures and sounds wherever people have them: folders, archives, Parquet, the Hub; what is said of them."""

import io
import tarfile
import zipfile

import numpy as np
import pyarrow
import pytest
import soundfile
import tifffile
from helpers import load, refused, write_images
from PIL import Image
from pyarrow import parquet as arrow

import ddpm
from tiny_diffusion import parquet
from tiny_diffusion.messages import UsageError


def png(value):
    """A picture of one shade of grey."""
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def wav(pitch):
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(16000) * pitch / 16000 * 2 * np.pi), 16000, format="WAV")
    return file.getvalue()


def write_parquet(path, column, contents, labels):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": content, "path": None} for content in contents]
    arrow.write_table(pyarrow.table({column: rows, "label": labels}), path)


def shades(data):
    return data.items[:, 0, 0, 0].tolist()


def test_a_zip_and_a_tar_of_class_folders_are_read_as_they_are(tmp_path, capsys):
    names = {f"{word}/{i}.png": 20 * i + 100 * (word == "b") for word in "ab" for i in range(4)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name, value in names.items():
            archive.writestr(name, png(value))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, value in names.items():
            head = tarfile.TarInfo(name)
            head.size = len(png(value))
            archive.addfile(head, io.BytesIO(png(value)))
    for suffix in ("zip", "tar"):
        data = load("folder", tmp_path / f"a.{suffix}", image_size=8)
        assert shades(data) == [0, 20, 40, 60, 100, 120, 140, 160] and data.classes == ["a", "b"]
        assert data.labels.tolist() == [0] * 4 + [1] * 4
    assert "2 classes: a (4), b (4)" in capsys.readouterr().out
    (tmp_path / "a.zip").unlink()
    assert shades(load("folder", tmp_path, image_size=8))[:2] == [0, 20]


def test_tars_of_webdataset_have_the_classes_that_stand_beside(tmp_path):
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as archive:
            for i in range(3):
                for suffix, content in (("png", png(10 * i + 100 * shard)), ("cls", str(i % 2).encode())):
                    head = tarfile.TarInfo(f"{shard}{i}.{suffix}")
                    head.size = len(content)
                    archive.addfile(head, io.BytesIO(content))
    data = load("folder", tmp_path, image_size=8)
    assert shades(data) == [0, 10, 20, 100, 110, 120] and data.labels.tolist() == [0, 1, 0, 0, 1, 0]


def test_parquet_files_in_a_folder_keep_their_split_and_classes(tmp_path, capsys):
    write_parquet(tmp_path / "train-0.parquet", "image", map(png, range(0, 60, 10)), [3, 5] * 3)
    write_parquet(tmp_path / "test-0.parquet", "image", map(png, (200, 210)), [3, 5])
    data = load("folder", tmp_path, image_size=8)
    assert np.take(shades(data), data.test).tolist() == [200, 210] and len(data.train) == 6
    assert data.classes == ["3", "5"] and "8 pictures in column image of 2 files" in capsys.readouterr().out
    write_parquet(tmp_path / "words" / "a.parquet", "audio", map(wav, (300, 600, 900)), ["x", "y", "x"])
    sounds = load("sounds", tmp_path / "words")
    assert sounds.classes == ["x", "y"] and sounds.labels.tolist() == [0, 1, 0]
    loudest = sounds.items[..., 0].sum(2, dtype=int).argmax(1)
    assert loudest[0] < loudest[1] < loudest[2]


def test_a_data_set_of_the_hub_is_pictures_or_sounds_as_it_says_itself(tmp_path, monkeypatch):
    def fetch(repository, revision, files, folder):
        column, contents = ("audio", map(wav, (300, 600))) if "word" in repository else ("image", map(png, (1, 2)))
        write_parquet(folder / files[0], column, contents, [0, 1])

    monkeypatch.setattr(parquet, "listed", lambda repository: ("main", ["data/train-0.parquet"]))
    monkeypatch.setattr(parquet, "fetch", fetch)
    assert load("hf:o/digits", tmp_path, image_size=8).items.shape == (2, 8, 8, 1)
    data = load("hf:o/words", tmp_path)
    assert data.modality == "audio" and data.name == "hf-audio:o/words" and data.items.shape == (2, 64, 64, 1)
    config = ddpm.resolve({"dataset": "hf:o/digits", "data_dir": str(tmp_path)})
    assert config.dataset == "hf-images:o/digits" and config.experiment_name == "hf_o_digits_base"
    assert ddpm.checked(vars(config))["dataset"] == config.dataset

    def offline(repository):
        raise ConnectionError("no network")

    monkeypatch.setattr(parquet, "listed", offline)
    with pytest.raises(UsageError, match=r"hf:o/other is not there.*no network.*OWNER/NAME"):
        load("hf:o/other", tmp_path)


def test_the_folders_train_and_val_are_a_split_and_classes_lie_below(tmp_path, capsys):
    for part, number in (("train", 6), ("val", 3)):
        for word in ("dark", "light"):
            write_images(tmp_path / part / word, number)
    data = load("folder", tmp_path, image_size=8)
    assert data.classes == ["dark", "light"] and (len(data.train), len(data.test)) == (12, 6)
    assert data.class_number("dark") == 0 and "2 classes: dark (9), light (9)" in capsys.readouterr().out


def test_what_is_left_out_or_missing_is_named_with_its_reason(tmp_path, capsys):
    write_images(tmp_path / "a", 6)
    write_images(tmp_path / "b", 6)
    write_images(tmp_path, 1)
    (tmp_path / "a" / "c.heic").write_bytes(b"")
    (tmp_path / "a" / "broken.png").write_bytes(b"not a picture")
    assert load("folder", tmp_path, image_size=8).classes == ["a", "b"]
    said = capsys.readouterr().out
    assert "1 .heic (save as JPEG or PNG)" in said and "left out 1 file that lies beside the folders: 000.png" in said
    assert "skipped 1 unreadable images: a/broken.png (no image that Pillow knows)" in said
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("")
    with pytest.raises(UsageError, match=r"no images, .png, .jpg, .tif, .webp or the like \(left out: 1 .txt\)"):
        load("folder", tmp_path / "empty")


def test_every_frame_is_an_item_where_it_is_asked_for(tmp_path, capsys):
    for i in range(3):
        frames = [Image.fromarray(np.full((8, 8), 80 * i + 20 * j, np.uint8)) for j in range(4)]
        frames[0].save(tmp_path / f"{i}.gif", save_all=True, append_images=frames[1:])
    data = load("folder", tmp_path, image_size=8)
    assert shades(data) == [0, 80, 160] and data.items.shape == (3, 8, 8, 1)
    assert "--frames all takes every one" in capsys.readouterr().out
    assert shades(load("folder", tmp_path, image_size=8, frames="all")) == list(range(0, 240, 20))
    for i in range(3, 20):
        (tmp_path / f"{i}.gif").write_bytes((tmp_path / "0.gif").read_bytes())
    data = load("folder", tmp_path, image_size=8, frames="all")
    assert len(data.test) == 8 and not {i // 4 for i in data.train} & {i // 4 for i in data.test}
    with pytest.raises(UsageError, match="--frames: only --dataset folder"):
        load("digits", frames="all")


def test_floats_and_masks_in_files_keep_their_values(tmp_path):
    for i in range(4):
        (tmp_path / "floats").mkdir(exist_ok=True)
        (tmp_path / "masks").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "floats" / f"{i}.tif", np.full((8, 8), 1000.5 * i, np.float32))
        mask = np.arange(64).reshape(8, 8) % 2 == i % 2
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    floats = load("folder", tmp_path / "floats", image_size=8)
    assert (shades(floats) == [0, 1000.5, 2001, 3001.5] and floats.facts.limits == ([0], [3001.5])) or shades(floats)
    assert floats.items.dtype == np.float32 and np.max(floats.facts.limits) == 3001.5
    masks = load("folder", tmp_path / "masks", image_size=8)
    assert masks.facts.limits == (0, 1) and masks.interval == (-1, 1)
    assert load("folder", tmp_path / "masks", image_size=8, range=[0, 2]).facts.limits == (0, 2)


def test_a_mixture_that_cannot_be_compared_is_refused_in_one_line(tmp_path, ddpm_command):
    (tmp_path / "mine").mkdir()
    tifffile.imwrite(tmp_path / "mine" / "a.tif", np.ones((8, 8), np.float32))
    (tmp_path / "mine" / "b.png").write_bytes(png(7))
    refused(ddpm_command("--dataset", "folder", "--data_dir", "mine"), "1 of floats (a.tif) and 1 of 8 bits (b.png)")
