"""The data sets: what they hold, how they are read, cached, batched, drawn and scored."""

import contextlib
import gzip
import hashlib
import http.server
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import load
from PIL import Image

import datasets
from datasets import STATIC, UsageError, restore, sliced_wasserstein


def test_dinosaur_has_the_published_summary_statistics():
    """Matejka & Fitzmaurice (2017)."""
    x, y = np.loadtxt(STATIC / "datasaurus_dino.csv", delimiter=",", skiprows=1).T
    assert len(x) == 142
    figures = [x.mean(), y.mean(), x.std(ddof=1), y.std(ddof=1), np.corrcoef(x, y)[0, 1]]
    assert np.abs(np.array(figures) - [54.263, 47.832, 16.765, 26.935, -0.064]).max() < 1e-3


@pytest.mark.parametrize("name", ["circle", "dino", "line", "moons"])
def test_points_are_8000_and_standardised_in_model_space(name):
    data = load(name)
    assert len(data.train) == 8000
    x_0, cond, _ = next(data.batches(8000, seed=0, epoch=1, device="cpu"))
    assert cond is None
    np.testing.assert_allclose(x_0.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x_0.std(0, correction=0), 1, atol=1e-5)
    low, high = data.interval
    assert low < x_0.min() and x_0.max() < high
    raw = data.items[np.random.default_rng((0, 1)).permutation(8000)]
    np.testing.assert_allclose(data.decode(x_0), raw, atol=1e-4)


def test_sliced_wasserstein_equals_scipy_direction_by_direction_and_a_shift_s_closed_form():
    x, y = np.random.default_rng(0).normal(size=(2, 500, 2)) * [[[1, 2]], [[3, 1]]]
    one = sliced_wasserstein(x, y, directions=1)  # at a right angle: the second coordinate
    quantiles = np.linspace(0, 1, 501)[1:] - 0.5 / 500
    inverse = [scipy.stats.mstats.mquantiles(points[:, 1], quantiles, alphap=0.5, betap=0.5) for points in (x, y)]
    assert one == pytest.approx(np.sqrt(np.mean((inverse[0] - inverse[1]) ** 2)))
    assert sliced_wasserstein(x, x + [3, 4]) == pytest.approx(5 / 2**0.5)  # E over directions of (5 cos)^2 = 25 / 2


def test_nearest_distance_is_that_of_the_definition_and_zero_for_the_same_points():
    x, y = np.random.default_rng(0).normal(size=(2, 300, 2))
    every = np.sqrt(((x[:, None] - y) ** 2).sum(-1))
    assert datasets.nearest_distance(x, y) == pytest.approx(every.min(1).mean())
    assert datasets.nearest_distance(x, x[::-1]) == 0


def points_ratios(data, x):
    scores = data.score(x)
    assert set(scores["true_samples"]) == {"sliced_wasserstein", "distance_to_data", "distance_to_training_items"}
    return scores["sliced_wasserstein_ratio"], scores["distance_to_data_ratio"]


@pytest.mark.parametrize("name", ["circle", "dino", "line", "moons"])
def test_points_scores_are_one_for_true_samples_and_more_for_wrong_ones(name):
    data = load(name)
    true = data.encode(torch.from_numpy(data.items[:2000]))
    assert all(0.6 < ratio < 1.4 for ratio in points_ratios(data, true))
    assert points_ratios(data, 1.1 * true)[0] > 1.5
    assert min(points_ratios(data, torch.randn(2000, 2))) > 1.4


def test_distance_to_data_sees_a_blur_that_the_sliced_wasserstein_distance_hardly_sees():
    data = load("dino")
    true = data.encode(torch.from_numpy(data.items[:2000]))
    wasserstein, nearest = points_ratios(data, true + 0.05 * torch.randn(2000, 2))
    assert wasserstein < 1.3 and nearest > 1.5


def test_batches_depend_on_seed_and_epoch_alone_and_cover_the_data():
    data = load("digits")

    def epoch(seed, number, data=data):
        return torch.cat([x_0 for x_0, _, _ in data.batches(100, seed, number, "cpu")])

    assert torch.equal(epoch(0, 1), epoch(0, 1, load("digits")))
    assert not torch.equal(epoch(0, 1), epoch(0, 2))
    assert not torch.equal(epoch(0, 1), epoch(1, 1))
    assert len(epoch(0, 1)) == 1500
    torch.testing.assert_close(epoch(0, 1).mean(), data.encode(torch.from_numpy(data.items[:1500])).mean())


def test_processes_share_each_batch():
    data = load("digits")
    whole = [batch[0] for batch in data.batches(100, 0, 1, "cpu")]
    shares = [[batch[0] for batch in data.batches(100, 0, 1, "cpu", rank, 4)] for rank in range(4)]
    for i, batch in enumerate(whole):
        assert all(len(share[i]) == 25 for share in shares)
        assert torch.equal(torch.stack([share[i] for share in shares], dim=1).flatten(0, 1), batch)


def test_photographs_are_mirrored_half_of_the_time_and_alike_for_all_processes():
    data = load("digits")
    plain = [x for x, _, _ in data.batches(100, 0, 1, "cpu")]
    data.flip = True
    one, again, other = (torch.cat([x for x, _, _ in data.batches(100, 0, epoch, "cpu")]) for epoch in (1, 1, 2))
    mirrored = (one == torch.cat(plain).flip(3)).flatten(1).all(1)
    assert torch.equal(one[~mirrored], torch.cat(plain)[~mirrored]) and 0.4 < mirrored.float().mean() < 0.6
    assert torch.equal(one, again) and not torch.equal(one, other)
    share, _, _ = next(data.batches(100, 0, 1, "cpu", rank=1, world_size=3))
    assert torch.equal(share, one[:100][1::3])


def test_streaming_yields_what_resident_data_does(monkeypatch):
    data = load("digits")
    resident = list(data.batches(100, 0, 1, "cpu"))
    monkeypatch.setattr(datasets, "RESIDENT_BYTES", 0)
    streamed = list(data.batches(100, 0, 1, "cpu"))
    assert len(streamed) == len(resident)
    for one, other in zip(streamed, resident):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def test_a_data_set_is_restored_from_its_facts():
    for name in ("dino", "digits"):
        data = load(name)
        remembered = restore(data.facts)
        x = torch.rand(30, *data.shape)
        assert np.array_equal(data.render(x), remembered.render(x))
        assert np.array_equal(data.decode(x), remembered.decode(x))


def test_conditions_are_every_class_in_turn_or_the_one_asked_for_by_name_or_number():
    data = restore({"name": "mnist", "shape": [1, 28, 28], "classes": ["cat", "dog", "7"]})
    assert data.condition(range(2, 6), None, "cpu").tolist() == [2, 0, 1, 2]
    assert data.condition(range(2), "dog", "cpu").tolist() == [1, 1]
    assert data.condition(range(2), "1", "cpu").tolist() == [1, 1]
    assert data.condition(range(2), "7", "cpu").tolist() == [2, 2]
    with pytest.raises(UsageError, match="cat, dog"):
        data.condition(range(2), "3", "cpu")
    with pytest.raises(UsageError, match="no classes"):
        load("dino").condition(range(2), "3", "cpu")


def test_limit_trains_on_the_first_items_alone():
    data = load("digits", limit=10)
    assert len(data.train) == 10 and len(data.test) == 297
    assert sum(len(batch[0]) for batch in data.batches(10, 0, 1, "cpu")) == 10


def write_images(folder, number, size=(40, 30)):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(number):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")


def test_folder_reads_subfolders_as_classes_and_names_unreadable_files(tmp_path, capsys):
    write_images(tmp_path / "cats", 12)
    write_images(tmp_path / "dogs", 8)
    (tmp_path / "dogs" / "broken.jpg").write_bytes(b"not a picture")
    (tmp_path / "notes.txt").write_text("not one either")
    data = load("folder", tmp_path, image_size=16)
    assert data.shape == (3, 16, 16) and data.classes == ["cats", "dogs"]
    assert data.items.shape == (20, 16, 16, 3) and np.bincount(data.labels).tolist() == [12, 8]
    assert len(data.train) == 18 and not set(data.train) & set(data.test)
    assert "skipped 1 unreadable images: dogs/broken.jpg" in capsys.readouterr().out.replace("\\", "/")
    load("folder", tmp_path, image_size=16)
    assert "skipped" not in capsys.readouterr().out


def test_folder_decodes_once_and_again_when_a_file_or_the_size_changes(tmp_path, monkeypatch):
    write_images(tmp_path, 5)
    calls = []
    decode = datasets.decode_image
    monkeypatch.setattr(datasets, "decode_image", lambda *arguments: calls.append(1) or decode(*arguments))
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


def test_images_are_cropped_to_the_middle_and_laid_on_white(tmp_path):
    pixels = np.zeros((20, 60, 4), np.uint8)
    pixels[:, 20:40] = [255, 0, 0, 255]  # the middle square is red, the rest transparent black
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    np.testing.assert_allclose(
        datasets.decode_image(tmp_path / "wide.png", (8, 8)), np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=16
    )
    Image.fromarray(np.zeros((20, 20, 4), np.uint8)).save(tmp_path / "clear.png")
    assert (datasets.decode_image(tmp_path / "clear.png", (8, 8)) == 255).all()


def test_a_folder_says_what_it_found_and_takes_a_height_and_a_width(tmp_path, capsys):
    write_images(tmp_path, 4)
    data = load("folder", tmp_path, image_size=[10, 14])
    assert data.shape == (3, 10, 14) and data.items.shape == (4, 10, 14, 3)
    assert f"{tmp_path}: 4 images, RGB, most 40×30" in capsys.readouterr().out


@pytest.mark.parametrize("dtype, size", [(np.uint8, (12, 20)), (np.uint16, (12, 20)), (np.uint16, (6, 10))])
def test_a_folder_of_grey_images_stays_grey_and_as_deep_as_it_is(dtype, size, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (6, 12, 20), dtype=dtype)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    data = load("folder", tmp_path, image_size=list(size))
    assert data.items.dtype == dtype and data.shape == (1, *size) and "grey" in capsys.readouterr().out
    if size == (12, 20):
        assert np.array_equal(data.items[..., 0], images)
    x = data.encode(torch.from_numpy(np.array(data.items)))
    assert np.array_equal(data.decode(x), data.items) and restore(data.facts).decode(x).dtype == dtype


def test_one_image_in_colour_makes_a_folder_rgb_and_deep_ones_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((8, 8), 0x8080, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.full((8, 8, 3), (200, 100, 50), np.uint8)).save(tmp_path / "colour.png")
    data = load("folder", tmp_path, image_size=8)
    assert data.items[:, 0, 0].tolist() == [[200, 100, 50], [0x80, 0x80, 0x80]]


def test_a_folder_without_images_is_an_error_that_names_the_argument(tmp_path):
    with pytest.raises(UsageError, match="--data_dir"):
        load("folder", tmp_path)
    with pytest.raises(UsageError, match="--data_dir"):
        load("folder", tmp_path / "absent")


def test_image_grid_holds_the_images():
    data = load("digits")
    x = data.encode(torch.from_numpy(data.items[:25]))
    picture = data.render(x)
    zoom = 56 // 10
    assert picture.shape == (3 * 10 * zoom, 10 * 10 * zoom, 3)
    tile = picture[10 * zoom : 20 * zoom : zoom, 30 * zoom : 40 * zoom : zoom, 0][1:-1, 1:-1]  # second row, fourth
    assert np.array_equal(tile, data.items[13, ..., 0])


def test_saved_samples_are_in_raw_units(tmp_path):
    data = load("digits")
    data.save(data.encode(torch.from_numpy(data.items[:12])), tmp_path)
    assert np.array_equal(np.load(tmp_path / "samples.npy"), data.items[:12])
    assert np.asarray(Image.open(tmp_path / "samples.png")).shape == (100, 500, 3)


def test_image_size_scales_gray_images():
    assert load("digits", image_size=16).items.shape == (1797, 16, 16, 1)


@contextlib.contextmanager
def server(folder):
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *arguments: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


def idx(array):
    """An array in the format of MNIST's files."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def test_mnist_is_downloaded_once(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    generator, resources = np.random.default_rng(0), []
    (tmp_path / "web").mkdir()
    for part, number in (("train", 30), ("t10k", 10)):
        images = generator.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        for name, array in (
            (f"{part}-images-idx3-ubyte.gz", images),
            (f"{part}-labels-idx1-ubyte.gz", images[:, 14, 14] % 10),
        ):
            content = gzip.compress(idx(array))
            (tmp_path / "web" / name).write_bytes(content)
            resources.append((name, hashlib.md5(content).hexdigest()))
    with server(tmp_path / "web") as address:
        monkeypatch.setattr(MNIST, "mirrors", [address])
        monkeypatch.setattr(MNIST, "resources", resources)
        data = load("mnist", tmp_path / "data")
    assert len(data.train) == 30 and len(data.test) == 10 and data.shape == (1, 28, 28)
    assert np.array_equal(data.items[30:, ..., 0], images)
    assert np.array_equal(load("mnist", tmp_path / "data").items, data.items)  # the server is gone


def test_mnist_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(UsageError, match=r"(?s)--data_dir.*could not be downloaded.*MNIST"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("name", ["pets", "faces"])
def test_kaggle_sets_are_downloaded_once_whole_and_have_no_classes(name, tmp_path, monkeypatch):
    import kagglehub

    def download(handle, path=None, *, force_download=False, output_dir=None):
        calls.append(handle)
        write_images(tmp_path / output_dir / "a", 3)
        if len(calls) == 1:
            raise ConnectionError("lost")
        write_images(tmp_path / output_dir / "b", 4)
        return output_dir

    calls = []
    monkeypatch.setattr(kagglehub, "dataset_download", download)
    with pytest.raises(UsageError, match="lost"):
        load(name, tmp_path, image_size=8)
    for _ in range(2):
        data = load(name, tmp_path, image_size=8)
        assert len(data.items) == 7 and data.classes is None and data.labels is None and data.flip
    assert len(calls) == 2 and len(list((tmp_path / name).rglob("*.png"))) == 7


class MeanColour(torch.nn.Module):
    """Stands in for Inception, whose weights are a download: the mean of each channel."""

    num_features = 3

    def forward(self, images):
        return images.double().mean((2, 3))


def test_frechet_distances_are_those_of_the_features_normal_distributions():
    real, generated, others = np.random.default_rng(0).integers(0, 256, (3, 300, 4, 4, 3), dtype=np.uint8)
    generated = generated // 2
    distances = datasets.frechet_distances(real, [generated, others], feature=MeanColour())
    for images, distance in zip((generated, others), distances):
        features = [part.astype(float).mean((1, 2)) for part in (real, images)]
        (m, c), (n, d) = [(f.mean(0), np.cov(f.T)) for f in features]
        expected = np.sum((m - n) ** 2) + np.trace(c + d - 2 * scipy.linalg.sqrtm(c @ d).real)
        assert distance == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_frechet_distance_stands_beside_that_of_as_many_real_images_or_it_is_said_why_not(monkeypatch, capsys):
    seen = []

    def offline(real, others, device):
        seen.extend((real, *others))
        raise OSError("no network")

    def score(number):
        return "frechet_distance" in data.score(torch.zeros(number, 1, 8, 8), thorough=True)

    monkeypatch.setattr(datasets, "frechet_distances", offline)
    data = load("digits")
    assert not score(2048) and not seen and "twice as many training images" in capsys.readouterr().out
    monkeypatch.setattr(datasets, "FRECHET_SAMPLES", 700)
    assert not score(699) and not seen and "--num_samples" in capsys.readouterr().out
    assert not score(700) and "no network" in capsys.readouterr().out
    assert [len(images) for images in seen] == [800, 700, 700]
    real = np.concatenate([seen[0], seen[2]]).reshape(1500, -1)
    assert np.array_equal(np.unique(real, axis=0), np.unique(data.items[:1500].reshape(1500, -1), axis=0))
    monkeypatch.setattr(datasets, "frechet_distances", lambda real, others, device: [2.0, 0.5])
    scores = data.score(torch.zeros(700, 1, 8, 8), thorough=True)
    assert (scores["frechet_distance"], scores["true_samples"]["frechet_distance"]) == (2.0, 0.5)


def test_the_nearest_training_item_is_that_of_the_definition(monkeypatch):
    data = load("digits")
    monkeypatch.setattr(datasets, "COMPARED_VALUES", 64 * 400)  # looked at in four parts
    x, items = (data.encode(torch.from_numpy(data.items[part])).flatten(1) for part in (data.test, data.train))
    every = (x[:, None] - items).square().mean(2).sqrt()
    distances, index = data.nearest(x.view(-1, 1, 8, 8))
    torch.testing.assert_close(distances, every.min(1).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(every[range(len(x)), index], every.min(1).values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["digits", "moons"])
def test_copies_are_far_nearer_to_the_training_items_than_held_out_items_are(name):
    data = load(name)
    x = data.encode(torch.from_numpy(data.items))
    copies, true = (data.score(x[part])["distance_to_training_items_ratio"] for part in (data.train[:200], data.test))
    assert copies < 0.01 and true == pytest.approx(1, abs=0.1)


def test_tones_are_each_channel_s_mean_and_contrast_in_raw_units():
    data = datasets.restore({"name": "pets", "shape": [3, 4, 5], "classes": None, "mean": 127.5, "std": 127.5})
    raw = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)
    tones = data.tones(data.encode(torch.from_numpy(raw)))
    for i, name in enumerate(("red", "green", "blue")):
        assert tones[f"mean_{name}"] == pytest.approx(raw[..., i].mean(), rel=1e-4)
        assert tones[f"contrast_{name}"] == pytest.approx(raw[..., i].std(), rel=1e-4)


def test_samples_of_one_class_are_compared_with_that_class():
    data = load("digits").of_class("7")
    assert set(data.labels[data.train]) == set(data.labels[data.test]) == {7}
    assert len(load("digits").of_class(None).train) == 1500


def test_every_row_of_the_table_has_a_reader_that_says_what_it_reads():
    for name, (modality, read) in datasets.DATASETS.items():
        assert issubclass(modality, datasets.Data) and read.__doc__, name
        assert modality.modality in SimpleNamespace(**__import__("ddpm").DEFAULTS).epochs
