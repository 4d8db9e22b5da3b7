"""Parquet files of pictures and sounds, as the Hub has them."""

import io
import json

import huggingface_hub
import numpy as np
import pyarrow
import pytest
import soundfile
from PIL import Image
from pyarrow import parquet as arrow

from tiny_diffusion import parquet
from tiny_diffusion.messages import UsageError
from tiny_diffusion.parquet import config_files, contents, download, read_parquet


def png(value):
    buffer = io.BytesIO()
    Image.new("L", (4, 4), value).save(buffer, "PNG")
    return buffer.getvalue()


def wav(value):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.full(100, value / 100), 16000, format="WAV")
    return buffer.getvalue()


def written(path, columns, features=None, **settings):
    table = pyarrow.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    arrow.write_table(table, path, **settings)
    return path


def held(make, values):
    return [{"bytes": make(value), "path": f"{value}.x"} for value in values]


IMAGE, DIGITS = {"_type": "Image"}, {"_type": "ClassLabel", "names": ["zero", "one", "two"]}


def shade(content):
    return Image.open(io.BytesIO(content)).getpixel((0, 0))


def test_pictures_and_classes_are_those_of_the_schema(tmp_path):
    columns = {"id": [5, 6, 7, 8], "image": held(png, [0, 10, 20, 30]), "label": [2, 0, 2, 0]}
    path = written(tmp_path / "a.parquet", columns, {"image": IMAGE, "label": DIGITS})
    table = read_parquet([path], "image", tmp_path)
    assert table.classes == ["zero", "two"] and table.labels.tolist() == [1, 0, 1, 0] and table.split is None
    assert [shade(content) for content in contents(table)] == [0, 10, 20, 30]
    assert table.said == [f"{tmp_path}: 4 pictures in column image of 1 file, 2 classes by label: zero, two"]


def test_the_split_is_that_of_the_files_names(tmp_path):
    features, paths = {"img": IMAGE, "label": DIGITS}, []
    for i, name in enumerate(["data/test-00000-of-00001", "data/train-00000-of-00002", "data/train-00001-of-00002"]):
        columns = {"img": held(png, [10 * i, 10 * i + 1]), "label": [i, (i + 1) % 3]}
        paths.append(written(tmp_path / f"{name}.parquet", columns, features))
    table = read_parquet(paths, "image", tmp_path)
    assert table.split.tolist() == ["test"] * 2 + ["train"] * 4
    assert [shade(content) for content in contents(table)] == [0, 1, 10, 11, 20, 21]
    assert table.labels.tolist() == [0, 1, 1, 2, 2, 0]


def test_without_a_description_columns_are_told_by_what_they_hold(tmp_path):
    path = written(tmp_path / "a.parquet", {"a": held(png, [1, 2]), "b": held(wav, [3, 4]), "label": ["x", "y"]})
    assert read_parquet([path], "image", tmp_path).column == "a"
    table = read_parquet([path], "audio", tmp_path)
    assert table.column == "b" and table.classes == ["x", "y"]
    wave, _ = soundfile.read(io.BytesIO(next(contents(table))))
    assert wave[0] == pytest.approx(0.03, abs=1e-4)
    plain = written(tmp_path / "b.parquet", {"jpg": [png(1), png(2)]})
    assert read_parquet([plain], "image", tmp_path).column == "jpg"


def test_rows_without_a_label_are_left_out_with_a_line(tmp_path):
    columns = {"image": held(png, [0, 10, 20, 30]), "label": [-1, 0, None, 1]}
    path = written(tmp_path / "a.parquet", columns, {"image": IMAGE, "label": DIGITS}, row_group_size=3)
    table = read_parquet([path], "image", tmp_path)
    assert [shade(content) for content in contents(table)] == [10, 30] and table.labels.tolist() == [0, 1]
    assert table.said[1] == "left out 2 items without a label"


def test_one_of_several_labels_is_taken_and_told(tmp_path):
    columns = {"img": held(png, [0, 1, 2]), "coarse_label": [0, 0, 0], "fine_label": [0, 1, 2]}
    path = written(tmp_path / "a.parquet", columns, {"img": IMAGE, "coarse_label": DIGITS, "fine_label": DIGITS})
    table = read_parquet([path], "image", tmp_path)
    assert table.classes == ["zero", "one", "two"] and "classes by fine_label; left out coarse_label" in table.said


def test_labels_may_be_categories_and_lists_of_them_are_told(tmp_path):
    label = pyarrow.array(["x", "y", "x"]).dictionary_encode()
    path = written(tmp_path / "a.parquet", {"image": held(png, [1, 2, 3]), "label": label})
    assert read_parquet([path], "image", tmp_path).labels.tolist() == [0, 1, 0]
    path = written(tmp_path / "b.parquet", {"image": held(png, [1, 2]), "labels": [[0, 1], [1]]})
    table = read_parquet([path], "image", tmp_path)
    assert table.classes is None and "left out labels: not one class an item" in table.said


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    paths = [written(tmp_path / "a.parquet", {"image": held(png, [1, 2]), "label": [0, 1]})]
    paths += [written(tmp_path / "b.parquet", {"image": held(png, [1, 2])})]
    with pytest.raises(UsageError, match=r"b\.parquet has no image and label"):
        read_parquet(paths, "image", tmp_path)
    with pytest.raises(UsageError, match="no Parquet files"):
        read_parquet([], "image", tmp_path)


def test_files_that_are_named_and_not_held_lie_beside_or_are_missed(tmp_path):
    path = written(tmp_path / "a.parquet", {"image": [{"bytes": None, "path": "1.png"}] * 2}, {"image": IMAGE})
    table = read_parquet([path], "image", tmp_path)
    with pytest.raises(UsageError, match=r"names the file 1.png and does not hold it"):
        list(contents(table))
    (tmp_path / "1.png").write_bytes(png(7))
    assert [shade(content) for content in contents(table)] == [7, 7]


def test_what_holds_nothing_of_the_kind_says_what_it_has(tmp_path):
    path = written(tmp_path / "a.parquet", {"audio": held(wav, [1]), "n": [1]}, {"audio": {"_type": "Audio"}})
    with pytest.raises(UsageError, match="no column of pictures among audio, n; it has sounds"):
        read_parquet([path], "image", tmp_path)
    path = written(tmp_path / "b.parquet", {"n": [1.5]})
    with pytest.raises(UsageError, match="no column of sounds among n; name"):
        read_parquet([path], "audio", tmp_path)
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    whole = written(tmp_path / "b" / "y.parquet", {"image": [png(9)] * 9}).read_bytes()
    (tmp_path / "b" / "y.parquet").write_bytes(whole[:10] + b"\xff" * 40 + whole[50:])
    with pytest.raises(UsageError, match="not whole"):
        list(contents(read_parquet([tmp_path / "b" / "y.parquet"], "image", tmp_path)))
    with pytest.raises(UsageError, match="not whole"):
        read_parquet([tmp_path / "c.parquet"], "image", tmp_path)


def test_items_are_read_few_at_a_time(tmp_path):
    path = written(tmp_path / "a.parquet", {"image": held(png, range(250))}, {"image": IMAGE}, row_group_size=50)
    generator = contents(read_parquet([path], "image", tmp_path))
    assert [shade(next(generator)) for _ in range(3)] == [0, 1, 2]
    assert len(list(generator)) == 247


def test_a_configuration_is_the_folder_on_top():
    plain = ["data/train-0.parquet", "data/test-0.parquet"]
    assert config_files(plain, "", "o/n") == plain
    two = ["v0.01/train/0.parquet", "v0.02/train/0.parquet"]
    assert config_files(two, "v0.02", "o/n") == two[1:]
    with pytest.raises(UsageError, match=r"--dataset hf:o/n:CONFIG: choose among v0.01, v0.02"):
        config_files(two, "", "o/n")
    assert config_files(["plain_text/train-0.parquet"], "", "o/n") == ["plain_text/train-0.parquet"]


def test_a_data_set_of_the_hub_is_downloaded_once_and_whole(tmp_path, monkeypatch):
    calls = []

    def listing(self, repository, repo_type, revision):
        return ["README.md", "mnist/train-0.parquet"] if revision == "refs/convert/parquet" else ["mnist.py"]

    def fetch(repository, revision, files, folder):
        calls.append((repository, revision, files))
        written(folder / files[0], {"image": held(png, [1, 2]), "label": [0, 1]})
        if len(calls) == 1:
            raise ConnectionError("lost")

    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", listing)
    monkeypatch.setattr(parquet, "fetch", fetch)
    with pytest.raises(ConnectionError):
        download("ylecun/mnist", tmp_path)
    for _ in range(2):
        home = download("ylecun/mnist", tmp_path)
        assert read_parquet(sorted(home.rglob("*.parquet")), "image", home).classes == ["0", "1"]
    assert calls == [("ylecun/mnist", "refs/convert/parquet", ["mnist/train-0.parquet"])] * 2
    assert not huggingface_hub.utils.logging.get_logger("huggingface_hub.utils").isEnabledFor(30), "warnings of retries"
