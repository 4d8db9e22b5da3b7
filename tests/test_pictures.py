"""Image files: every depth, frame and mixture comes out with its own values, or is refused in one line."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from tiny_diffusion.messages import UsageError
from tiny_diffusion.picture_heads import Look, look, suffixes
from tiny_diffusion.pictures import Kind, all_grey, common_kind, decode, found_line, items_of

DEEP = np.arange(9 * 7 * 4, dtype=np.uint16).reshape(9, 7, 4) * 257 + 3  # (height, width, channels)
PNG_COLOUR = {1: 0, 2: 4, 3: 2, 4: 6}  # channels: PNG's type of colour


def write_png(path, pixels, transparent=()):
    """A PNG of 16 bits, which Pillow cannot write in colour."""
    height, width, channels = pixels.shape
    head = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOUR[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    if transparent:
        chunks.insert(1, (b"tRNS", struct.pack(f">{len(transparent)}H", *transparent)))
    checked = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(checked))
    return path


def write_tiff(path, pixels, **settings):
    tifffile.imwrite(path, pixels, **settings)
    return path


def whole(path, **frame):
    """An image as a folder of its kind keeps it, at its own size."""
    head = look(path)
    return decode(path, head.size, Kind(head.channels, head.dtype), **frame)


@pytest.mark.parametrize("values", [np.linspace(0, 1, 63), np.linspace(0, 3000, 63), np.linspace(-5, 5, 63)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_tiff_of_floats_keeps_its_floats(values, dtype, tmp_path):
    pixels = values.reshape(9, 7).astype(dtype)
    path = write_tiff(tmp_path / "a.tif", pixels)
    assert look(path) == Look((7, 9), 1, "float32")
    assert np.array_equal(whole(path)[..., 0], pixels.astype(np.float32))
    colours = write_tiff(tmp_path / "b.tif", np.stack([pixels] * 3, 2), photometric="rgb")
    assert look(colours).channels == 3 and np.array_equal(whole(colours)[..., 2], pixels.astype(np.float32))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_and_tiff_of_16_bits_keep_16_bits(channels, tmp_path):
    pixels = DEEP[..., :channels].copy()
    if channels % 2 == 0:
        pixels[..., -1] = 65535  # opaque
    colours = channels - (channels % 2 == 0)
    kinds = {1: {}, 2: {"extrasamples": ["unassalpha"]}, 3: {"photometric": "rgb"}, 4: {"photometric": "rgb"}}
    tiff = pixels[..., 0] if channels == 1 else pixels
    settings = {"photometric": "minisblack", "planarconfig": None if channels == 1 else "contig"} | kinds[channels]
    paths = [write_png(tmp_path / "a.png", pixels), write_tiff(tmp_path / "a.tif", tiff, **settings)]
    for path in paths:
        assert look(path) == Look((7, 9), colours, "uint16", channels % 2 == 0)
        assert np.array_equal(whole(path), pixels[..., :colours])


def test_what_is_half_transparent_in_16_bits_is_laid_on_white(tmp_path):
    pixels = np.full((4, 4, 4), (10000, 20000, 30000, 32768), np.uint16)
    path = write_png(tmp_path / "a.png", pixels)
    assert np.abs(whole(path)[0, 0] - [37767, 42767, 47767]).max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_of_16_bits_with_one_transparent_value_is_read(channels, tmp_path):
    pixels = DEEP[..., :channels]
    path = write_png(tmp_path / "a.png", pixels, tuple(map(int, pixels[2, 3])))
    found = whole(path)
    assert (found[2, 3] == 65535).all() and np.array_equal(found[0], pixels[0])


def test_integers_of_32_bits_and_with_a_sign_keep_their_range(tmp_path):
    for dtype, kept in {
        "int32": "int32",
        "uint32": "int32",
        "int64": "int32",
        "int16": "int16",
        "int8": "int16",
    }.items():
        limits = np.iinfo(dtype)
        pixels = np.linspace(max(limits.min, -100000), min(limits.max, 1000000), 63).reshape(9, 7).astype(dtype)
        found = whole(write_tiff(tmp_path / f"{dtype}.tif", pixels))
        assert found.dtype == kept and np.array_equal(found[..., 0], pixels)
    path = write_tiff(tmp_path / "large.tif", np.full((9, 7), 3_000_000_000, np.uint32))
    with pytest.raises(UsageError, match="3,000,000,000"):
        whole(path)


def test_a_tiff_whose_white_is_zero_is_turned_round(tmp_path):
    shallow, deep = np.full((4, 4), 55, np.uint8), np.full((4, 4), 5535, np.uint16)
    for pixels, white in ((shallow, 200), (deep, 60000)):
        path = write_tiff(tmp_path / "a.tif", pixels, photometric="miniswhite")
        assert (whole(path) == white).all()


def test_pgm_of_12_and_ppm_of_16_bits(tmp_path):
    grey, colours = DEEP[..., 0] % 4096, DEEP[..., :3]
    (tmp_path / "a.pgm").write_bytes(b"P5 7 9 4095\n" + grey.astype(">u2").tobytes())
    assert np.abs(whole(tmp_path / "a.pgm")[..., 0] - grey * (65535 / 4095)).max() < 1
    (tmp_path / "a.ppm").write_bytes(b"P6 7 9 65535\n" + colours.astype(">u2").tobytes())
    assert np.array_equal(whole(tmp_path / "a.ppm"), colours)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_upright_as_shallow_ones_are(orientation, tmp_path):
    pixels = (np.arange(12).reshape(3, 4) * 20).astype(np.uint8)
    tags = [(0x0112, "H", 1, orientation, True)]
    shallow = write_tiff(tmp_path / "a.tif", pixels, extratags=tags)
    grey = write_tiff(tmp_path / "b.tif", pixels.astype(np.uint16), extratags=tags)
    colours = write_tiff(
        tmp_path / "c.tif", np.stack([pixels] * 3, 2).astype(np.uint16), extratags=tags, photometric="rgb"
    )
    expected = whole(shallow)
    assert expected.shape == ((4, 3, 1) if orientation > 4 else (3, 4, 1))
    assert np.array_equal(whole(grey), expected) and np.array_equal(whole(colours), expected.repeat(3, 2))


@pytest.mark.parametrize("suffix", ["gif", "webp", "tif", "png"])
def test_each_frame_of_a_film_is_an_item_or_the_first_with_a_line(suffix, tmp_path):
    frames = [Image.new("L", (8, 8), 40 * i) for i in range(5)]
    settings = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **settings)
    frames[0].save(tmp_path / f"b.{suffix}")
    paths = [tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"]
    looks = [look(path) for path in paths]
    assert [one.frames for one in looks] == [5, 1]
    first, said = items_of(looks, False, "mine")
    assert first == [(0, 0), (1, 0)]
    assert said == ["mine: 1 file of several frames (5): the first of each is taken; --frames all takes every one"]
    every, said = items_of(looks, True, "mine")
    assert len(every) == 6 and said == ["mine: 6 frames of 2 files"]
    found = [decode(paths[i], (8, 8), Kind(1, "uint8"), frame)[0, 0, 0] for i, frame in every]
    assert found == [0, 40, 80, 120, 160, 0]


def test_pages_of_a_deep_tiff_are_frames_and_previews_are_not(tmp_path):
    stack = np.arange(3 * 63, dtype=np.uint16).reshape(3, 9, 7)
    path = write_tiff(tmp_path / "a.tif", stack, photometric="minisblack")
    assert look(path).frames == 3 and np.array_equal(whole(path, frame=2)[..., 0], stack[2])
    with tifffile.TiffWriter(tmp_path / "b.tif") as tiff:
        tiff.write(stack[0])
        tiff.write(stack[0, ::2, ::2], subfiletype=1)
    assert look(tmp_path / "b.tif").frames == 1


def test_the_two_pictures_of_a_phone_s_jpeg_are_one(tmp_path):
    Image.new("RGB", (8, 8), "red").save(
        tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))]
    )
    assert look(tmp_path / "a.jpg").frames == 1


def test_12_bit_greys_beside_8_bits_are_each_scaled_by_their_own_depth(tmp_path):
    for i in range(9):
        Image.fromarray(np.full((8, 8), 867 + i * 400, np.uint16)).save(tmp_path / f"{i}.png")
    Image.fromarray(np.full((8, 8), 54, np.uint8)).save(tmp_path / "z.png")
    paths = sorted(tmp_path.glob("*.png"))
    kind, said = common_kind([look(path) for path in paths], paths, "mine", lambda: paths)
    assert kind == Kind(1, "uint8", 12)
    assert said == ["9 images of 16 bits with values up to 4,067, taken for 12 bits, are kept in 8, as the rest are"]
    found = [decode(path, (8, 8), kind)[0, 0, 0] for path in paths]
    assert found[0] == 54 == found[9] and found[8] == round(4067 * 255 / 4095)


def test_16_bits_beside_8_keep_their_brightness(tmp_path):
    Image.fromarray(np.full((8, 8), 0x8080, np.uint16)).save(tmp_path / "deep.png")
    write_png(tmp_path / "rgb.png", np.full((8, 8, 3), (0x1010, 0xFFFF, 0x2020), np.uint16))
    Image.fromarray(np.full((8, 8, 3), (200, 100, 50), np.uint8)).save(tmp_path / "colour.png")
    paths = sorted(tmp_path.iterdir())
    kind, _ = common_kind([look(path) for path in paths], paths, "mine", lambda: paths)
    assert [decode(path, (4, 4), kind)[0, 0].tolist() for path in paths] == [
        [200, 100, 50],
        [0x80, 0x80, 0x80],
        [0x10, 0xFF, 0x20],
    ]


def test_floats_beside_bytes_are_refused_with_an_example_of_each(tmp_path):
    looks = [Look((8, 8), 1, "float32"), Look((8, 8), 1, "uint8"), Look((8, 8), 1, "uint8")]
    with pytest.raises(UsageError, match=r"1 of floats \(a.tif\) and 2 of 8 bits \(b.png\) cannot be compared"):
        common_kind(looks, ["a.tif", "b.png", "c.png"], "mine", list)


def test_rgb_and_palette_files_without_colours_are_grey(tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    picture = Image.fromarray(np.stack([grey] * 3, 2))
    picture.save(tmp_path / "a.png")
    picture.save(tmp_path / "b.jpg")
    picture.save(tmp_path / "c.webp", quality=50)
    picture.quantize(256).save(tmp_path / "d.png")
    picture.save(tmp_path / "e.gif")
    found = np.stack([decode(path, (16, 16), Kind(3, "uint8")) for path in sorted(tmp_path.iterdir())])
    assert all_grey(found) and np.array_equal(found[0, ..., :1], decode(tmp_path / "a.png", (16, 16), Kind(1, "uint8")))
    found[4, 3, 3] = (100, 100, 103)
    assert not all_grey(found)


def test_masks_of_0_and_1_stay_0_and_1(tmp_path):
    mask = np.random.default_rng(0).integers(0, 2, (20, 20), dtype=np.uint8)
    Image.fromarray(mask).save(tmp_path / "a.png")
    assert np.array_equal(decode(tmp_path / "a.png", (20, 20), Kind(1, "uint8"))[..., 0], mask)
    assert set(np.unique(decode(tmp_path / "a.png", (7, 7), Kind(1, "uint8")))) <= {0, 1}


def test_what_is_cut_away_is_said_with_the_size_that_keeps_all():
    line = found_line([Look((200, 20), 1, "uint8")] * 3, Kind(1, "uint8"), (64, 64), "mine")
    kept = "of those only the middle 20×20 is kept: --image_size 64 640 keeps all"
    assert line == f"mine: 3 images, grey, 8 bits, most 20×200; {kept}"
    assert found_line([Look((40, 30), 3, "uint8")], Kind(3, "uint8"), (64, 64), "mine").endswith("most 30×40")


def test_missing_values_are_named(tmp_path):
    pixels = np.ones((9, 7), np.float32)
    pixels[0, :2] = np.nan
    with pytest.raises(UsageError, match="2 of 63 values are no finite numbers"):
        whole(write_tiff(tmp_path / "a.tif", pixels))
    pixels[0, :2] = -9999
    tags = [(42113, "s", 0, "-9999", True)]
    with pytest.raises(UsageError, match="2 of 63 values are -9999, missing"):
        whole(write_tiff(tmp_path / "b.tif", pixels, extratags=tags))


def test_an_image_above_pillow_s_limit_is_refused_with_the_reason(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match="more than 0 million pixels, which Pillow refuses"):
        look(tmp_path / "a.png")


def test_other_channels_values_and_compressions_are_refused_in_one_line(tmp_path):
    five = np.zeros((9, 7, 5), np.uint8)
    with pytest.raises(UsageError, match=r"5 channels .* are neither grey nor RGB"):
        look(write_tiff(tmp_path / "a.tif", five, photometric="minisblack", planarconfig="contig"))
    with pytest.raises(UsageError, match="complex64 are no picture"):
        look(write_tiff(tmp_path / "b.tif", np.zeros((9, 7), np.complex64)))
    path = write_tiff(tmp_path / "c.tif", DEEP[..., :3].copy(), photometric="rgb")
    content = path.read_bytes().replace(struct.pack("<HHII", 259, 3, 1, 1), struct.pack("<HHII", 259, 3, 1, 50001))
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"WEBP compression is not read .* pip install imagecodecs"):
        whole(path)
    (tmp_path / "d.png").write_bytes(b"not a picture")
    with pytest.raises(UsageError, match="no image that Pillow knows"):
        look(tmp_path / "d.png")


def test_a_further_channel_is_left_out_with_a_word(tmp_path):
    four = np.full((9, 7, 4), (10, 20, 30, 99), np.uint8)
    for name, dtype in (("a.tif", np.uint8), ("b.tif", np.uint16)):
        path = write_tiff(tmp_path / name, four.astype(dtype), photometric="rgb", extrasamples=["unspecified"])
        assert look(path).more and whole(path)[0, 0].tolist() == [10, 20, 30]
    assert "; of 1 a further channel is left out" in found_line([look(path)], Kind(3, "uint16"), (7, 9), "mine")


def test_fits_of_whole_numbers_and_sgi_of_16_bits_are_refused(tmp_path):
    cards = ["SIMPLE  =                    T", "BITPIX  =                   16", "NAXIS   =                    2"]
    cards += [
        "NAXIS1  =                    2",
        "NAXIS2  =                    2",
        "BZERO   =                32768",
        "END",
    ]
    head = "".join(card.ljust(80) for card in cards).ljust(2880)
    (tmp_path / "a.fits").write_bytes(head.encode() + bytes(2880))
    head = struct.pack(">HBBHHHHii", 474, 0, 2, 3, 4, 4, 3, 0, 65535).ljust(512, b"\0")
    (tmp_path / "a.sgi").write_bytes(head + bytes(4 * 4 * 3 * 2))
    with pytest.raises(UsageError, match="FITS of whole numbers"):
        look(tmp_path / "a.fits")
    with pytest.raises(UsageError, match="more than 8 bits a channel in SGI"):
        decode(tmp_path / "a.sgi", (4, 4), Kind(3, "uint16"))


def test_images_in_memory_are_read_as_files_are(tmp_path):
    for path in (
        write_png(tmp_path / "a.png", DEEP),
        write_tiff(tmp_path / "b.tif", DEEP.astype(np.float32), photometric="rgb"),
    ):
        assert look(io.BytesIO(path.read_bytes())) == look(path)
        assert np.array_equal(whole(io.BytesIO(path.read_bytes())), whole(path))


def test_a_photograph_is_upright_cropped_and_on_white(tmp_path):
    pixels = np.zeros((20, 60, 4), np.uint8)
    pixels[:, 20:40] = [255, 0, 0, 255]  # the middle square is red, the rest transparent black
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    middle = decode(tmp_path / "wide.png", (8, 8), Kind(3, "uint8"))
    np.testing.assert_allclose(middle, np.broadcast_to([255, 0, 0], (8, 8, 3)), atol=16)
    picture, exif = Image.new("RGB", (8, 16), "red"), Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif)
    assert look(tmp_path / "a.jpg").size == (16, 8)


def test_no_suffix_is_promised_that_cannot_be_read():
    assert {".png", ".jpg", ".tif", ".gif", ".webp", ".pgm"} <= suffixes()
    assert not {".h5", ".mpg", ".pdf", ".grib", ".heic"} & suffixes()


def test_floats_that_are_resized_stay_within_the_values_of_their_file(tmp_path):
    edge = np.zeros((20, 20), np.float32)
    edge[:, 10:] = 1
    Image.fromarray(edge).save(tmp_path / "edge.tif")
    pixels = decode(tmp_path / "edge.tif", (64, 64), Kind(1, "float32"))
    assert pixels.shape == (64, 64, 1) and (pixels.min(), pixels.max()) == (0, 1)
