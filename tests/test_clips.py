"""Sound files: the right second of the right channel at the right pitch, whatever the format."""

import io
import struct

import numpy as np
import pytest
import soundfile

from tiny_diffusion.clips import SAMPLE_RATE, SUFFIXES, one_second, with_length


def tone(frequency, seconds=1.0, rate=SAMPLE_RATE, level=0.5):
    return level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


def hiss(seconds, decibels, rate=SAMPLE_RATE, seed=0):
    return 10 ** (decibels / 20) * np.random.default_rng(seed).normal(size=int(seconds * rate))


def saved(path, wave, rate=SAMPLE_RATE, **settings):
    soundfile.write(path, wave, rate, **settings)
    return path


def pitch(wave):
    """The strongest frequency of a second, in Hz."""
    return int(np.abs(np.fft.rfft(wave * np.hanning(len(wave)))).argmax())


def decibels_at(wave, frequency):
    """Power of a second of sound at a frequency, in dB of full scale."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) / (len(wave) / 4)
    return 20 * np.log10(spectrum[frequency - 3 : frequency + 4].max() + 1e-12)


THREE = np.concatenate([tone(500, 2), tone(1000, 2), tone(1500, 2)])  # the middle second is of 1,000 Hz


def test_a_second_is_centred_and_of_peak_1(tmp_path):
    wave = one_second(saved(tmp_path / "a.wav", tone(440, 0.5) + 0.1))
    assert wave.shape == (SAMPLE_RATE,) and wave.dtype == np.float32 and np.abs(wave).max() == 1
    assert not wave[:4000].any() and not wave[-4000:].any() and pitch(wave) == 440


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000, 44099, 999_983])
def test_any_rate_becomes_16_khz(rate, tmp_path):
    assert pitch(one_second(saved(tmp_path / "a.wav", tone(1000, 1.2, rate), rate))) == 1000


@pytest.mark.parametrize("rate", [44100, 48000])
def test_what_is_above_8_khz_is_gone_and_what_is_below_stays(rate, tmp_path):
    reference = tone(1000, 1.1, rate, 0.4)
    kept = one_second(saved(tmp_path / "a.wav", reference + tone(7500, 1.1, rate, 0.4), rate, subtype="FLOAT"))
    assert abs(decibels_at(kept, 7500) - decibels_at(kept, 1000) + 0.4) < 0.2
    gone = one_second(saved(tmp_path / "b.wav", reference + tone(9000, 1.1, rate, 0.4), rate, subtype="FLOAT"))
    assert decibels_at(gone, 7000) - decibels_at(gone, 1000) < -100


KINDS = [
    *(("w64", "W64", "PCM_16"), ("caf", "CAF", "ALAC_16"), ("voc", "VOC", "PCM_16"), ("rf64", "RF64", "PCM_24")),
    *(("au", "AU", "PCM_16"), ("oga", "OGG", "VORBIS"), ("opus", "OGG", "OPUS"), ("flac", "FLAC", "PCM_24")),
    *(
        ("mp3", "MP3", "MPEG_LAYER_III"),
        ("aif", "AIFF", "ULAW"),
        ("sph", "NIST", "PCM_16"),
        ("wav", "WAV", "IMA_ADPCM"),
    ),
    *(("wav", "WAV", "GSM610"), ("wav", "WAV", "G721_32"), ("au", "AU", "G723_24"), ("wav", "WAV", "NMS_ADPCM_32")),
    *(("aif", "AIFF", "DWVW_16"), ("w64", "W64", "GSM610"), ("wav", "WAV", "ALAW"), ("wav", "WAV", "PCM_U8")),
]


@pytest.mark.parametrize("suffix, form, subtype", KINDS)
def test_the_middle_second_is_read_in_every_format(suffix, form, subtype, tmp_path):
    rate = 8000 if subtype in ("GSM610", "G721_32", "G723_24", "NMS_ADPCM_32", "ULAW", "ALAW") else 16000
    wave = np.concatenate([tone(500, 2, rate), tone(1000, 2, rate), tone(1500, 2, rate)])
    path = saved(tmp_path / f"a.{suffix}", wave, rate, format=form, subtype=subtype)
    assert f".{suffix}" in SUFFIXES
    for source in (path, io.BytesIO(path.read_bytes())):
        assert abs(pitch(one_second(source)) - 1000) <= 1


def without_head(content):
    """An MP3 without its first frame, which tells its length."""
    return content[content.find(content[:2], 4) :]


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE", "AVERAGE"])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_without_its_head_has_its_middle_where_it_is(mode, channels, tmp_path):
    noise = 0.5 * np.random.default_rng(0).uniform(-1, 1, 5 * SAMPLE_RATE)
    wave = np.concatenate([tone(400, 5), noise, tone(1000, 2), noise, np.zeros(5 * SAMPLE_RATE)])
    settings = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": mode, "compression_level": 0.6}
    path = saved(tmp_path / "a.mp3", np.stack([wave] * channels, 1), 44100 if channels == 2 else 16000, **settings)
    content = path.read_bytes()
    assert with_length(content) == content
    (tmp_path / "b.mp3").write_bytes(without_head(content))
    expected = 1000 if channels == 1 else 2756
    assert pitch(one_second(path)) == pitch(one_second(tmp_path / "b.mp3")) == expected
    path.write_bytes(b"ID3\3\0\0\0\0\x10\0" + bytes(2048) + without_head(content))
    assert pitch(one_second(path)) == expected


def test_an_mp3_cut_off_in_the_middle_gives_the_middle_of_what_is_there(tmp_path):
    path = saved(tmp_path / "a.mp3", tone(700, 5), format="MP3")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = one_second(path)
    assert pitch(found) == 700 and (found**2).mean() > 0.4


def test_a_flac_without_a_length_is_read_to_its_end(tmp_path):
    content = bytearray(saved(tmp_path / "a.flac", THREE).read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    assert soundfile.info(tmp_path / "a.flac").frames > 2**62
    assert pitch(one_second(tmp_path / "a.flac")) == 1000


def test_a_wav_that_was_streamed_says_no_length(tmp_path):
    content = bytearray(saved(tmp_path / "a.wav", THREE).read_bytes())
    for place in (4, content.find(b"data") + 4):
        content[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    (tmp_path / "a.wav").write_bytes(content)
    assert pitch(one_second(tmp_path / "a.wav")) == 1000


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT", "PCM_24"])
def test_a_word_before_hiss_is_taken_and_not_the_hiss(subtype, tmp_path):
    wave = np.concatenate([hiss(0.5, -80), tone(700, 1), hiss(6, -80)])
    found = one_second(saved(tmp_path / "a.wav", wave, subtype=subtype))
    assert pitch(found) == 700 and (found**2).mean() > 0.4  # the whole word


def test_the_middle_is_kept_where_it_is_no_30_db_quieter(tmp_path):
    quiet = np.concatenate([tone(500, 2, level=0.9), tone(1000, 2, level=0.04), tone(1500, 2, level=0.9)])
    assert pitch(one_second(saved(tmp_path / "a.wav", quiet))) == 1000
    quieter = np.concatenate([tone(500, 2, level=0.95), tone(1000, 2, level=0.02), tone(1500, 2, level=0.9)])
    assert pitch(one_second(saved(tmp_path / "a.wav", quieter))) == 500
    small = 0.1 * quiet  # of floats, full scale is no limit
    assert pitch(one_second(saved(tmp_path / "a.wav", small, subtype="FLOAT"))) == 1000


def test_channels_of_opposite_sign_give_the_louder_of_them(tmp_path):
    wave = tone(600)
    stereo = np.stack([wave + hiss(1, -70), -0.9 * wave + hiss(1, -70, seed=1)], 1)
    assert pitch(one_second(saved(tmp_path / "a.wav", stereo))) == 600
    exact = np.stack([wave, -wave], 1)
    found = one_second(saved(tmp_path / "b.wav", exact))
    assert pitch(found) == 600 and decibels_at(found, 600) > -1
    cancelled = np.concatenate([np.stack([tone(800), -tone(800)], 1), np.zeros((6 * SAMPLE_RATE, 2))])
    assert pitch(one_second(saved(tmp_path / "c.wav", cancelled))) == 800


@pytest.mark.parametrize("channels", [2, 6, 16])
def test_channels_that_have_nothing_in_common_are_averaged(channels, tmp_path):
    wave = np.stack([tone(500 + 100 * i, level=0.3) for i in range(channels)], 1)
    found = one_second(saved(tmp_path / "a.wav", wave))
    assert min(decibels_at(found, 500 + 100 * i) for i in range(channels)) > decibels_at(found, 500) - 1


def test_silence_and_what_rounding_leaves_are_no_sound(tmp_path):
    rounding = np.random.default_rng(0).integers(-1, 2, SAMPLE_RATE).astype(np.int16)
    for wave in (np.zeros(SAMPLE_RATE), np.zeros(0), np.full(SAMPLE_RATE, 0.3), rounding, np.full(800, np.nan)):
        subtype = "PCM_16" if wave.dtype == np.int16 else "FLOAT"
        assert one_second(saved(tmp_path / "a.wav", wave, subtype=subtype)) is None
    assert pitch(one_second(saved(tmp_path / "a.wav", tone(440, level=3e-4), subtype="FLOAT"))) == 440


def test_what_is_no_sound_raises(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"not a sound")
    with pytest.raises(soundfile.LibsndfileError):
        one_second(tmp_path / "a.wav")
