"""Sound: its spectrograms and the way back, the data sets, and what a run leaves."""

import json
import shutil
import tarfile

import numpy as np
import pytest
import scipy.optimize
import scipy.signal
import soundfile
import torch
from helpers import files, load, server
from PIL import Image

from datasets import restore
from tiny_diffusion.messages import UsageError
from tiny_diffusion.sounds import (
    BANDS,
    FRAMES,
    HIGHEST,
    HOP,
    LOUDEST,
    LOWEST,
    PEAK,
    QUIETEST,
    SAMPLE_RATE,
    WINDOW,
    decode_clip,
    in_colour,
    labelled_tiles,
    log_mel,
    nonnegative_least_squares,
    vocode,
)

DIGITS = "zero one two three four five six seven eight nine".split()  # noqa: SIM905
SECONDS = np.arange(SAMPLE_RATE) / SAMPLE_RATE


def chirp(low, high, seconds=0.5, rate=SAMPLE_RATE):
    """A tone that rises from `low` to `high` Hz, faded in and out."""
    t = np.arange(int(seconds * rate)) / rate
    return np.hanning(len(t)) * scipy.signal.chirp(t, low, seconds, high)


@pytest.fixture
def spoken(tmp_path):
    """Speech Commands in its own layout: three clips of each of eleven words, the last of each held out."""
    root = tmp_path / "data" / "SpeechCommands" / "speech_commands_v0.02"
    for i, word in enumerate([*DIGITS, "yes", "_background_noise_"]):
        (root / word).mkdir(parents=True)
        for j in range(3):
            soundfile.write(
                root / word / f"a{j}_nohash_{i}.wav", 0.1 * chirp(200 + 100 * i, 400 + 300 * j), SAMPLE_RATE
            )
    (root / "validation_list.txt").write_text("")
    (root / "testing_list.txt").write_text("".join(f"{word}/a2_nohash_{i}.wav\n" for i, word in enumerate(DIGITS)))
    return root


def triangles():
    """Mel filters by their definition: band i rises from corner i to i + 1 and falls to i + 2."""
    mel = 2595 * np.log10(1 + np.array([LOWEST, HIGHEST]) / 700)
    corners = 700 * (10 ** (np.linspace(*mel, BANDS + 2) / 2595) - 1)
    frequencies = np.arange(WINDOW // 2 + 1) * SAMPLE_RATE / WINDOW
    return np.stack([np.interp(frequencies, corners[i : i + 3], [0, 1, 0]) for i in range(BANDS)])


def test_levels_are_decibels_of_mel_power_as_scipy_computes_them():
    wave = (np.sin(2 * np.pi * 440 * SECONDS) + np.sin(2 * np.pi * 3000 * SECONDS**2)) / 2
    window = scipy.signal.windows.hann(WINDOW, sym=False)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(wave, WINDOW // 2, "reflect"), WINDOW)[::HOP][:FRAMES]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    decibels = 10 * np.log10(triangles() @ power.T + 1e-12)
    expected = ((decibels - QUIETEST) / (LOUDEST - QUIETEST) * 255).clip(0, 255)
    levels = log_mel(torch.from_numpy(wave).float())
    assert levels.shape == (BANDS, FRAMES)
    assert np.abs(levels.numpy() - expected).max() < 1  # a level is 0.3 dB


def test_nonnegative_least_squares_equals_scipy_s():
    matrix, target = np.random.default_rng(0).random((8, 20)), np.random.default_rng(1).normal(size=(3, 8, 5))
    ours = nonnegative_least_squares(*map(torch.from_numpy, (matrix, target)), steps=2000).numpy()
    assert (ours >= 0).all()
    residuals = np.linalg.norm(matrix @ ours - target, axis=1)
    expected = [[scipy.optimize.nnls(matrix, column)[1] for column in columns.T] for columns in target]
    np.testing.assert_allclose(residuals, expected, rtol=1e-3, atol=1e-3)


def test_the_round_trip_keeps_the_spectrogram_and_makes_clean_sound():
    sounds = [chirp(300, 3000, 0.8), chirp(2000, 150, 0.6) + 0.3 * chirp(4000, 4000, 0.6)]
    waves = torch.stack([torch.from_numpy(np.pad(s, (0, SAMPLE_RATE - len(s)))).float() for s in sounds])
    waves /= waves.abs().amax(1, keepdim=True)
    levels = log_mel(waves)
    back = vocode(levels[..., None].numpy())
    assert back.shape == (2, SAMPLE_RATE) and back.dtype == np.float32
    np.testing.assert_allclose(np.abs(back).max(1), PEAK, rtol=1e-5)
    assert np.abs(back.mean(1)).max() < 1e-6
    again = log_mel(torch.from_numpy(back / PEAK))
    loud = levels > levels.amax() - 255 * 40 / (LOUDEST - QUIETEST)  # within 40 dB of the loudest
    error = (again.float() - levels.float())[loud] * ((LOUDEST - QUIETEST) / 255)  # in dB
    assert (error - error.mean()).abs().mean() < 2 and error.mean().abs() < 3
    assert np.array_equal(back, vocode(levels[..., None].numpy()))


def test_silence_stays_silent():
    assert (vocode(np.zeros((2, BANDS, FRAMES, 1), np.uint8)) == 0).all()


def test_clips_become_mono_of_one_second_at_16_khz_whatever_their_level(tmp_path):
    reference = chirp(300, 2000, 0.5)
    soundfile.write(tmp_path / "plain.wav", reference, SAMPLE_RATE)
    soundfile.write(tmp_path / "quiet.wav", 0.02 * reference + 0.01, SAMPLE_RATE, subtype="FLOAT")
    high = chirp(300, 2000, 0.5, 44100)
    soundfile.write(tmp_path / "stereo.flac", np.stack([high, high], 1) / 2, 44100)
    soundfile.write(tmp_path / "long.wav", np.pad(reference, SAMPLE_RATE), SAMPLE_RATE)
    plain, *others = (decode_clip(tmp_path / name) for name in ("plain.wav", "quiet.wav", "stereo.flac", "long.wav"))
    assert plain.shape == (BANDS, FRAMES, 1) and plain.dtype == np.uint8
    assert plain[:, :14].max() == 0 and plain[:, -14:].max() == 0 < plain[:, 32].max()  # silence on both sides
    for other in others:
        loud = plain > 100
        assert np.abs(plain.astype(int) - other)[loud].max() <= 4


@pytest.mark.parametrize("limit", [None, 5])
def test_digits_are_the_classes_and_the_lists_decide_what_is_held_out(spoken, limit):
    data = load("speech-commands", spoken.parents[1], limit=limit)
    assert data.classes == DIGITS and data.shape == (1, BANDS, FRAMES)
    assert len(data.train) == (limit or 20) and len(data.test) == 10
    assert sorted(data.labels[data.test]) == list(range(10))
    for i in data.test:
        clip = spoken / DIGITS[data.labels[i]] / f"a2_nohash_{data.labels[i]}.wav"
        assert np.array_equal(data.items[i], decode_clip(clip))


def test_clips_are_standardised_by_the_training_set(spoken):
    data = load("speech-commands", spoken.parents[1])
    x_0, cond, _ = next(data.batches(20, seed=0, epoch=1, device="cpu"))
    assert abs(x_0.mean()) < 1e-4 and abs(x_0.std() - 1) < 1e-4
    order = np.random.default_rng((0, 1)).permutation(data.train)
    assert np.array_equal(data.decode(x_0), data.items[order]) and cond.tolist() == data.labels[order].tolist()
    low, high = data.interval
    torch.testing.assert_close(
        data.encode(torch.tensor([0, 255])[:, None, None, None]).flatten(), torch.tensor([low, high])
    )
    assert data.bin_width == pytest.approx((high - low) / 255)


def test_words_choose_others_and_name_what_there_is(spoken):
    data = load("speech-commands", spoken.parents[1], words=["yes", "two", "yes"])
    assert data.classes == ["yes", "two"] and len(data.items) == 6
    with pytest.raises(UsageError, match=r"--words no: choose among eight, five, .*yes"):
        load("speech-commands", spoken.parents[1], words=["no"])
    with pytest.raises(UsageError, match=r"--words: no test items"):
        load("speech-commands", spoken.parents[1], words=["yes"])


def test_unreadable_and_empty_clips_are_named_once_and_the_rest_is_cached(spoken, capsys, monkeypatch):
    (spoken / "two" / "a0_nohash_2.wav").write_bytes(b"not sound")
    soundfile.write(spoken / "six" / "a1_nohash_6.wav", np.zeros(0), SAMPLE_RATE)
    soundfile.write(spoken / "nine" / "a1_nohash_9.wav", np.zeros(800), SAMPLE_RATE)
    (spoken / "one" / "a2_nohash_1.wav").unlink()
    data = load("speech-commands", spoken.parents[1])
    assert len(data.items) == 26 and len(data.test) == 9
    said = capsys.readouterr().out
    assert "skipped 4 unreadable clips" in said
    assert all(name in said for name in ("a0_nohash_2", "a1_nohash_6", "a1_nohash_9", "a2_nohash_1"))
    monkeypatch.setattr("tiny_diffusion.sounds.decode_clip", None)
    assert np.array_equal(load("speech-commands", spoken.parents[1]).items, data.items)
    assert capsys.readouterr().out == ""


def test_a_set_without_its_lists_is_an_error(spoken):
    (spoken / "testing_list.txt").unlink()
    with pytest.raises(UsageError, match=r"--data_dir.*not whole.*testing_list"):
        load("speech-commands", spoken.parents[1])


def test_speech_commands_are_downloaded_once_and_unpacked_whole(spoken, tmp_path, monkeypatch):
    from torchaudio.datasets import speechcommands

    (tmp_path / "web").mkdir()
    with tarfile.open(tmp_path / "web" / "speech_commands_v0.02.tar.gz", "w:gz") as archive:
        archive.add(spoken, ".")
    download, unpack, calls = speechcommands.download_url_to_file, speechcommands._extract_tar, []

    def from_here(url, target, hash_prefix):
        calls.append(url)
        download(address + url.rsplit("/", 1)[1], target)

    def broken(archive, folder):
        unpack(archive, folder)
        shutil.rmtree(folder / "one")
        raise OSError("disk full")

    monkeypatch.setattr(speechcommands, "download_url_to_file", from_here)
    monkeypatch.setattr(speechcommands, "_extract_tar", lambda archive, folder: broken(archive, tmp_path / folder))
    with server(tmp_path / "web") as address:
        with pytest.raises(UsageError, match=r"--data_dir.*disk full"):
            load("speech-commands", tmp_path / "new")
        monkeypatch.setattr(speechcommands, "_extract_tar", unpack)
        data = load("speech-commands", tmp_path / "new")
    assert np.array_equal(data.items, load("speech-commands", spoken.parents[1]).items)
    assert len(calls) == 1 and not list((tmp_path / "new").glob(".Speech*"))
    load("speech-commands", tmp_path / "new")  # the server is gone


def test_without_a_network_speech_commands_say_what_to_do(tmp_path, monkeypatch):
    from torchaudio.datasets import speechcommands

    def offline(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setattr(speechcommands, "download_url_to_file", offline)
    with pytest.raises(UsageError, match=r"--data_dir.*no network.*connect to the internet"):
        load("speech-commands", tmp_path)


def test_sounds_are_anyone_s_own(spoken):
    data = load("sounds", spoken)
    assert data.classes == sorted([*DIGITS, "yes", "_background_noise_"]) and len(data.items) == 36
    assert load("sounds", spoken, words=["yes", "one"]).classes == ["yes", "one"]
    alone = load("sounds", spoken / "yes")
    assert alone.classes is None and len(alone.train) == 2 and len(alone.test) == 1
    with pytest.raises(UsageError, match=r"--data_dir .*absent: no such folder"):
        load("sounds", spoken / "absent")


def test_sounds_whose_names_are_not_utf_8_are_read(tmp_path):
    for word in ("a\udcff", "b\udce9"):
        (tmp_path / word).mkdir()
        for i in range(3):
            with open(tmp_path / word / f"\udcff{i}.wav", "wb") as file:
                soundfile.write(file, chirp(300, 900 + 100 * i), SAMPLE_RATE, format="WAV")
    data = load("sounds", tmp_path)
    assert len(data.items) == 6 and data.classes == ["a\udcff", "b\udce9"]


def test_samples_are_sounds_named_by_word(spoken, tmp_path):
    data = restore(load("speech-commands", spoken.parents[1]).facts.model_dump())
    x = data.encode(torch.randint(0, 256, (12, BANDS, FRAMES, 1), dtype=torch.uint8))
    data.save(x, tmp_path)
    data.save(x[:2], tmp_path, "seven")
    names = sorted(path.name for path in (tmp_path / "audio").iterdir())
    assert names == ["seven_000.png", "seven_000.wav", "seven_001.png", "seven_001.wav"]
    info = soundfile.info(tmp_path / "audio" / "seven_001.wav")
    assert (info.samplerate, info.frames, info.channels, info.subtype) == (SAMPLE_RATE, SAMPLE_RATE, 1, "PCM_16")
    wave, _ = soundfile.read(tmp_path / "audio" / "seven_001.wav", dtype="float32")
    np.testing.assert_allclose(wave, vocode(data.decode(x[:2]))[1], atol=1e-4)
    assert np.array_equal(np.load(tmp_path / "samples.npy"), data.decode(x[:2]))
    assert Image.open(tmp_path / "samples.png").width == 2 * (2 * FRAMES + 2)


def test_pictures_have_low_frequencies_at_the_bottom_and_the_waveform_below():
    levels, wave = np.zeros((1, BANDS, FRAMES, 1), np.uint8), np.zeros((1, SAMPLE_RATE), np.float32)
    levels[0, 0] = 255
    wave[0, : SAMPLE_RATE // 2] = np.sin(2 * np.pi * 1000 * SECONDS[: SAMPLE_RATE // 2])
    picture = in_colour(levels)[0].astype(int).sum(2)
    assert (picture[-1] > picture[0]).all()
    (tile,) = labelled_tiles(levels, wave, ["seven"])
    waveform = tile[-40:, :, 0] > 100
    assert waveform[:, :60].mean() > 0.95 and waveform[:, 70:].mean() < 0.1


def test_a_run_speaks_and_its_checkpoint_speaks_without_the_data(spoken, tmp_path, ddpm_command):
    sizes = ["--hidden_size", 16, "--patch_size", 8, "--num_timesteps", 10, "--sampling_steps", 3, "--num_samples", 12]
    flags = ["--dataset", "speech-commands", "--data_dir", spoken.parents[1], "--epochs", 1, *sizes]
    result = ddpm_command(*flags)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "exps" / "speech-commands_base"
    assert len(list((run / "audio").glob("*.wav"))) == 12 and (run / "audio" / "one_011.wav").exists()
    assert all((run / name).exists() for name in ("samples.png", "forward.gif", "reverse.gif", "training.gif"))
    assert json.loads((run / "metrics.json").read_text())["bits_per_dim"] > 0
    shutil.rmtree(spoken)
    result = ddpm_command("--sample", run / "checkpoint.pt", "--label", "seven", "--guidance", 3, "--num_samples", 2)
    assert result.returncode == 0, result.stderr
    assert len(list((run / "samples").rglob("audio/seven_*.wav"))) == 2
    assert ddpm_command("--sample", run / "checkpoint.pt", "--label", "eleven").returncode == 2


WORDS = {
    "absolute": "/elsewhere/a",
    "up": "../../../a",
    "long": "日" * 85,
    "undecodable": "\udcff",
    "none": "",
    "dots": "..",
}


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_names_of_classes_never_become_paths(word, tmp_path):
    facts = {"name": "sounds", "shape": [1, BANDS, FRAMES], "classes": [word, "b"], "mean": 100.0, "std": 50.0}
    folder = tmp_path / "some" / "folder"
    folder.mkdir(parents=True)
    restore(facts).save(torch.zeros(2, 1, BANDS, FRAMES), folder)
    assert len(list((folder / "audio").glob("*.wav"))) == 2
    assert all(path.startswith("some/folder/") for path in files(tmp_path))


def test_sounds_of_any_rate_are_read_in_little_time_and_memory(tmp_path):
    for rate in (44099, 11127, 999_983):
        tone = np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate)
        soundfile.write(tmp_path / f"{rate}.wav", tone, rate)
    soundfile.write(tmp_path / "16000.wav", np.sin(2 * np.pi * 440 * np.arange(48000) / 16000), 16000)
    reference = decode_clip(tmp_path / "16000.wav").astype(int)
    for rate in (44099, 11127, 999_983):
        found = decode_clip(tmp_path / f"{rate}.wav")
        loud = reference > reference.max() - 60  # 19 dB
        assert np.abs(found - reference)[loud].max() <= 6  # 2 dB
