"""Images: how they are read, decoded, scaled, mirrored, drawn and scored."""

import gzip
import hashlib

import numpy as np
import pytest
import scipy.linalg
import torch
from helpers import load, numbers, server, write_images
from PIL import Image

from datasets import restore
from tiny_diffusion.images import frechet_distances
from tiny_diffusion.messages import UsageError
from tiny_diffusion.pictures import Kind, decode

RGB = Kind(3, "uint8")


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


def test_images_are_cropped_to_the_middle_and_laid_on_white(tmp_path):
    pixels = np.zeros((20, 60, 4), np.uint8)
    pixels[:, 20:40] = [255, 0, 0, 255]  # the middle square is red, the rest transparent black
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    np.testing.assert_allclose(
        decode(tmp_path / "wide.png", (8, 8), RGB), np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=16
    )
    Image.fromarray(np.zeros((20, 20, 4), np.uint8)).save(tmp_path / "clear.png")
    assert (decode(tmp_path / "clear.png", (8, 8), RGB) == 255).all()


def test_a_folder_says_what_it_found_and_takes_a_height_and_a_width(tmp_path, capsys):
    write_images(tmp_path, 4)
    data = load("folder", tmp_path, image_size=[10, 14])
    assert data.shape == (3, 10, 14) and data.items.shape == (4, 10, 14, 3)
    assert f"{tmp_path}: 4 images, RGB, 8 bits, most 40×30" in capsys.readouterr().out


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
    assert np.array_equal(data.decode(x), data.items) and restore(data.facts.model_dump()).decode(x).dtype == dtype


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


def test_image_size_scales_gray_images():
    assert load("digits", image_size=16).items.shape == (1797, 16, 16, 1)


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


@pytest.mark.parametrize("name, prefix", [("kmnist", "KMNIST/raw/"), ("emnist", "EMNIST/raw/emnist-balanced-")])
def test_kmnist_and_emnist_stand_upright_and_have_their_own_classes(name, prefix, tmp_path):
    images, labels = np.zeros((2, 28, 28), np.uint8), np.arange(2, dtype=np.uint8)
    images[:, 3, 20] = 255  # row 3, column 20
    parts = {"kmnist": ("train", "t10k"), "emnist": ("train", "test")}[name]
    for part in parts:
        path = tmp_path / f"{prefix}{part}-images-idx3-ubyte"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(idx(images))
        (tmp_path / f"{prefix}{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    data = load(name, tmp_path)
    row, column = np.argwhere(data.items[0, ..., 0])[0]
    assert (row, column) == {"kmnist": (3, 20), "emnist": (20, 3)}[name]
    assert len(data.train) == 2 == len(data.test) and len(data.classes) == {"kmnist": 10, "emnist": 47}[name]


def test_cifar_10_is_rgb(monkeypatch, tmp_path):
    import torchvision.datasets

    class Cifar:
        classes = ["airplane", "automobile"]  # noqa: RUF012
        targets = [0, 1, 1]  # noqa: RUF012

        def __init__(self, root, train, download):
            self.data = np.full((3, 32, 32, 3), (10, 20, 30), np.uint8)

        def __len__(self):
            return 3

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Cifar)
    data = load("cifar-10", tmp_path, image_size=16)
    assert data.items.shape == (6, 16, 16, 3) and data.items[5, 8, 8].tolist() == [10, 20, 30]
    assert data.classes == ["airplane", "automobile"] and data.labels.tolist() == [0, 1, 1] * 2


def test_mnist_without_a_network_says_what_to_do(tmp_path, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    (tmp_path / "mine" / "empty").mkdir(parents=True)
    for data_dir in (tmp_path / "mine", tmp_path / "new" / "data"):
        with pytest.raises(UsageError, match=r"(?s)--data_dir.*could not be downloaded.*MNIST"):
            load("mnist", data_dir)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "mine", tmp_path / "mine" / "empty"]


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
    distances = frechet_distances(real, [generated, others], feature=MeanColour())
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

    monkeypatch.setattr("tiny_diffusion.images.frechet_distances", offline)
    data = load("digits")
    assert not score(2048) and not seen and "twice as many training images" in capsys.readouterr().out
    monkeypatch.setattr("tiny_diffusion.images.FRECHET_SAMPLES", 700)
    assert not score(699) and not seen and "--num_samples" in capsys.readouterr().out
    assert not score(700) and "no network" in capsys.readouterr().out
    assert [len(images) for images in seen] == [800, 700, 700]
    real = np.concatenate([seen[0], seen[2]]).reshape(1500, -1)
    assert np.array_equal(np.unique(real, axis=0), np.unique(data.items[:1500].reshape(1500, -1), axis=0))
    monkeypatch.setattr("tiny_diffusion.images.frechet_distances", lambda real, others, device: [2.0, 0.5])
    scores = data.score(torch.zeros(700, 1, 8, 8), thorough=True)
    assert (scores["frechet_distance"], scores["true_samples"]["frechet_distance"]) == (2.0, 0.5)


def test_the_nearest_training_item_is_that_of_the_definition(monkeypatch):
    data = load("digits")
    monkeypatch.setattr("tiny_diffusion.images.CHUNK", 64 * 400)  # looked at in four parts
    x, items = (data.encode(torch.from_numpy(data.items[part])).flatten(1) for part in (data.test, data.train))
    every = (x[:, None] - items).square().mean(2).sqrt()
    distances, index = data.nearest(x.view(-1, 1, 8, 8))
    torch.testing.assert_close(distances, every.min(1).values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(every[range(len(x)), index], every.min(1).values, rtol=0, atol=1e-6)


def test_tones_are_each_channel_s_mean_and_contrast_in_raw_units():
    data = restore({"name": "pets", "shape": [3, 4, 5], "classes": None, "mean": 127.5, "std": 127.5})
    raw = np.random.default_rng(0).integers(0, 256, (50, 4, 5, 3), dtype=np.uint8)
    tones = data.tones(data.encode(torch.from_numpy(raw)))
    for i, name in enumerate(("red", "green", "blue")):
        assert tones[f"mean_{name}"] == pytest.approx(raw[..., i].mean(), rel=1e-4)
        assert tones[f"contrast_{name}"] == pytest.approx(raw[..., i].std(), rel=1e-4)


def test_images_with_broken_exif_keep_their_pixels(tmp_path):
    picture, exif = Image.new("RGB", (8, 8), "red"), Image.Exif()
    exif[0x0112] = 3
    picture.save(tmp_path / "a.jpg", exif=exif)
    content = (tmp_path / "a.jpg").read_bytes()
    broken = content.replace(b"\x01\x12\x00\x03", b"\x01\x12\xff\xff").replace(b"MM\x00*", b"MM\xff\xff")
    assert broken != content
    (tmp_path / "a.jpg").write_bytes(broken)
    assert (decode(tmp_path / "a.jpg", (4, 4), RGB)[..., 0] > 200).all()


@pytest.mark.parametrize(
    "items, interval",
    [
        (numbers((30, 9, 14), np.uint8), (0, 255)),
        (numbers((30, 9, 14, 1), np.uint16, 200, 4095), (200, 4095)),
        (numbers((30, 24, 40, 4), np.float32, -3, 400), (-3, 400)),
        (numbers((30, 8, 8, 2), np.float64, 1e9, 1e9 + 1), (1e9, 1e9 + 1)),
        (numbers((30, 8, 8), np.float16, 0, 1), (0, 1)),
        (numbers((30, 8, 8), ">f4", 0, 1), (0, 1)),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_images_come_back_in_their_own_shape_type_and_units(items, interval, tmp_path, capsys):
    np.save(tmp_path / "x.npy", items)
    data = load("array", tmp_path / "x.npy")
    x, _, _ = next(data.batches(27, 0, 1, "cpu"))
    assert x.dtype == torch.float32 and x.shape == (27, *(items.shape[1:] + (1,))[2:3], *items.shape[1:3])
    order = np.random.default_rng((0, 1)).permutation(data.train)
    for one in (data, restore(data.facts.model_dump())):
        back = one.decode(x)
        assert back.dtype == items.dtype.newbyteorder("=") and back.shape == (27, *items.shape[1:])
        np.testing.assert_allclose(back, items[order], atol=1e-6 * (interval[1] - interval[0]))
    assert data.decode(torch.full((1, *data.shape), 9.0)).max() == interval[1], "clipped to the range"
    assert np.ptp(data.render(x)) == 255 and str(len(items)) in capsys.readouterr().out


def test_integers_have_bits_per_dim_in_levels_of_their_own_and_floats_have_none(tmp_path):
    for dtype, width in ((np.uint8, 2 / 255), (np.uint16, 2 / 4095), (np.float32, None)):
        np.save(tmp_path / "x.npy", numbers((20, 8, 8), dtype, 0, 255 if dtype == np.uint8 else 4095))
        assert load("array", tmp_path / "x.npy").bin_width == (width and pytest.approx(width))


def test_a_range_scales_the_values_and_holds_them_all(tmp_path):
    np.save(tmp_path / "x.npy", numbers((20, 8, 8), np.float32, -1, 2))
    data = load("array", tmp_path / "x.npy", range=[-5, 5])
    assert next(data.batches(18, 0, 1, "cpu"))[0].abs().max() <= 0.4 and data.interval == (-1, 1)
    with pytest.raises(UsageError, match=r"--range 0 5: the values are from -1 to 2"):
        load("array", tmp_path / "x.npy", range=[0, 5])


@pytest.mark.parametrize("labels", [["cat", "dog"], [3, 7]])
def test_y_names_the_classes(labels, tmp_path):
    x = numbers((20, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "xy.npz", x=x, y=np.array(labels * 10))
    data = load("array", tmp_path / "xy.npz")
    assert data.classes == [str(label) for label in labels] and data.labels.tolist() == [0, 1] * 10
