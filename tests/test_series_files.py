"""From files to time series: CSVs as they come, folders of GluonTS, and what is wrong with them."""

import gzip
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import HOURS, LENGTH, TINY, load, row, waves, write_csv, write_gluonts

import ddpm
from datasets import restore
from tiny_diffusion.messages import UsageError


def test_a_gluonts_folder_has_training_series_and_rolling_windows(gluonts_folder):
    data, values = load("series", gluonts_folder), waves().astype(np.float32)
    assert data.facts.names == ["site 0", "site 1", "site 2"] and data.freq == "h" and data.prediction_length == LENGTH
    (learned, *scored), (pasts, starts, _, _, truth) = data.items, data.windows
    np.testing.assert_array_equal(learned.values[: learned.train_end], values[: HOURS - 3 * LENGTH])
    np.testing.assert_array_equal(scored[-1].values, values)
    assert learned.train_end == HOURS - 3 * LENGTH == data.train.max() + LENGTH
    assert not any(group.train_end for group in scored)
    assert truth.shape == (3, LENGTH, 3)
    for window in range(3):
        end = HOURS - (2 - window) * LENGTH
        np.testing.assert_array_equal(truth[window], values[end - LENGTH : end])
        np.testing.assert_array_equal(pasts[window], values[: end - LENGTH][-data.past_length :])
        assert starts[window] == pd.Period("2024-01-01", "h") + end - LENGTH
    by_name = load("exchange-rate", gluonts_folder.parents[1])
    assert by_name.name == "gluonts:exchange_rate_nips" and np.array_equal(by_name.windows.truth, truth)


def test_a_half_written_download_is_made_again(gluonts_folder, monkeypatch, capsys):
    from gluonts.dataset.repository.datasets import dataset_recipes

    made = []

    def recipe(dataset_path, **settings):
        made.append(dataset_path)
        if len(made) == 1:
            (dataset_path / "train").mkdir(parents=True)
            raise ConnectionError("lost")
        write_gluonts(dataset_path, waves(seed=1))

    monkeypatch.setitem(dataset_recipes, "exchange_rate_nips", recipe)
    load("exchange-rate", gluonts_folder.parents[1])
    assert not made
    whole = (gluonts_folder / "test" / "data.json.gz").read_bytes()
    (gluonts_folder / "test" / "data.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"--data_dir.*ConnectionError: lost.*connect to the internet"):
        load("exchange-rate", gluonts_folder.parents[1])
    for _ in range(2):
        data = load("exchange-rate", gluonts_folder.parents[1])
        assert np.array_equal(data.items[-1].values, waves(seed=1).astype(np.float32))
    assert len(made) == 2 and [path.name for path in gluonts_folder.parent.iterdir()] == ["exchange_rate_nips"]
    shutil.rmtree(gluonts_folder / "test")
    load("exchange-rate", gluonts_folder.parents[1])
    assert len(made) == 3 and "not whole" in capsys.readouterr().out


def test_any_name_of_gluonts_will_do_and_others_are_an_error(gluonts_folder):
    gluonts_folder.rename(gluonts_folder.with_name("vic_electricity"))
    assert load("gluonts:vic_electricity", gluonts_folder.parents[1]).name == "gluonts:vic_electricity"
    with pytest.raises(UsageError, match=r"nothing: not there.*m4_hourly"):
        load("gluonts:nothing", gluonts_folder.parents[1])


def spoiled(frame, how):
    frame = frame.astype(object)
    if how == "a date that is none":
        frame.iloc[7, 0] = "yesterday"
    elif how == "a word":
        frame.iloc[7, 2] = "much"
    elif how == "twice":
        frame.iloc[7, 0] = frame.iloc[8, 0]
    elif how == "short":
        frame = frame[:12]
    elif how == "gaps":
        frame = frame.drop(index=[5, 9, 50])
    return frame


@pytest.mark.parametrize(
    "how, message",
    [
        ("a date that is none", "--data_dir .*yesterday"),
        ("a word", "--data_dir .*much"),
        ("twice", "--data_dir .*several rows for 2024-01-01 08:00"),
        ("short", "--prediction_length 6.*too few"),
    ],
)
def test_a_spoiled_csv_is_an_error_of_one_line(tmp_path, ddpm_command, how, message):
    csv = write_csv(tmp_path / "my.csv", waves())
    spoiled(pd.read_csv(csv), how).to_csv(csv, index=False)
    flags = ["--prediction_length", LENGTH, "--freq", "h", *TINY]
    result = ddpm_command("--dataset", "series", "--data_dir", csv, *flags)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert pd.Series([result.stderr]).str.contains(message).all(), result.stderr


def test_rows_that_are_missing_are_missing_values(tmp_path, capsys):
    csv = write_csv(tmp_path / "my.csv", waves())
    spoiled(pd.read_csv(csv), "gaps").to_csv(csv, index=False)
    data = load("series", csv, freq="h", prediction_length=LENGTH, difference=1)
    assert "3 of 400 rows are missing, the first 2024-01-01 05:00" in capsys.readouterr().out
    missing = np.isnan(data.items[0].values)
    assert missing[[5, 9, 50]].all() and missing.sum() == 9
    weights = torch.cat([weight for _, _, weight in data.read([row(data, *range(20, 60))], "cpu")])
    assert (weights == 0).any() and weights.max() == 1


CSVS = {
    "years": ("year,a\n" + "".join(f"{1900 + i},{i}\n" for i in range(60)), "Y", "read as years"),
    "seconds": ("t,a\n" + "".join(f"{1700000000 + 3600 * i},{i}\n" for i in range(60)), "h", "seconds since 1970"),
    "a trailing line of commas": (
        "time,a,\n" + "".join(f"2024-01-{1 + i:02d},{i},\n" for i in range(31)) + ",,\n",
        "D",
        "",
    ),
    "semicolons and decimal commas": (
        "time;a\n" + "".join(f"2024-01-{1 + i:02d};{i},0\n" for i in range(31)),
        "D",
        "decimal commas",
    ),
    "summer time": (
        "time,a\n"
        + "".join(f"{stamp.isoformat()},{i}\n" for i, stamp in enumerate(
            pd.date_range("2024-03-30", periods=72, freq="h", tz="Europe/Berlin"))),
        "h",
        "counted in UTC",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CSVS)
def test_csvs_are_read_as_they_come_and_what_was_assumed_is_said(tmp_path, capsys, kind):
    text, freq, said = CSVS[kind]
    (tmp_path / "my.csv").write_text(text)
    data = load("series", tmp_path / "my.csv", prediction_length=2, difference=1)
    assert data.freq.startswith(freq) and said in capsys.readouterr().out
    values = data.items[0].values[:, 0]
    assert np.array_equal(values, np.arange(len(values))) and len(values) >= 31


def test_rows_closer_than_freq_become_their_mean(tmp_path, capsys):
    csv = write_csv(tmp_path / "my.csv", np.arange(400.0)[:, None])
    data = load("series", csv, prediction_length=2, freq="2h", difference=1)
    np.testing.assert_array_equal(data.items[0].values[:, 0], np.arange(200) * 2 + 0.5)
    assert "400 rows become the means of 200" in capsys.readouterr().out


def test_a_column_that_begins_late_is_a_series_of_its_own(tmp_path):
    values = waves()
    values[:100, 0], values[390:, 1], values[-LENGTH:, 2] = np.nan, np.nan, np.nan
    data = load("series", write_csv(tmp_path / "my.csv", values), prediction_length=LENGTH, test_windows=2)
    assert [len(group.values) for group in data.items] == [HOURS - 100, 390, HOURS]  # the last one only lacks its end
    assert data.items[0].start == pd.Period("2024-01-01", "h") + 100 and data.histories == 6


def test_a_known_covariate_is_read_to_the_end_of_the_forecast(tmp_path, ddpm_command):
    values = waves(420, 2)
    frame = pd.read_csv(write_csv(tmp_path / "my.csv", values))
    frame.loc[HOURS:, "plant 0"] = np.nan  # to be forecast; plant 1 is known
    frame.to_csv(tmp_path / "my.csv", index=False)
    flags = ("--dataset", "series", "--data_dir", tmp_path / "my.csv", "--prediction_length", LENGTH)
    result = ddpm_command(*flags, "--covariates", "plant 1", *TINY)
    assert result.returncode == 0, result.stderr
    path = tmp_path / "exps/series_base/checkpoint.pt"
    data = ddpm.load_model(path).data
    (start,) = data.windows.starts
    assert data.facts.names == ["plant 0"] and start == pd.Period("2024-01-01", "h") + HOURS
    expected = (values[:, 1] - values[: data_end(tmp_path), 1].mean()) / values[: data_end(tmp_path), 1].std()
    steps, (level, change) = np.arange(HOURS - data.context_length, HOURS + LENGTH), data.past.features[0, :, -2:].T
    np.testing.assert_allclose(level, expected[steps], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(change, (expected[steps] - expected[steps - data.difference]), rtol=1e-3, atol=1e-4)
    assert ddpm_command("--sample", path).returncode == 0
    (forecast,) = ddpm.predictor(path).predict(
        [{"target": values[:100, 0], "start": start, "feat_dynamic_real": values[None, : 100 + LENGTH, 1]}]
    )
    assert np.isfinite(forecast.samples).all()
    frame[: HOURS + 2].to_csv(tmp_path / "my.csv", index=False)
    assert ddpm_command(*flags, "--covariates", "plant 1", *TINY, "--overwrite").returncode == 0
    result = ddpm_command("--sample", path)
    assert result.returncode == 2 and f"--covariates plant 1: not known for {start + 2}" in result.stderr
    result = ddpm_command(*flags, "--covariates", "price", *TINY, "--overwrite")
    assert result.returncode == 2 and "--covariates price: not among the columns" in result.stderr


def data_end(tmp_path):
    """Rows that are learned from: all but the last five forecasts."""
    return HOURS - 5 * LENGTH


BAD_CSVS = {
    "inf": ("plant 1", 7, "inf", "inf in column plant 1, row 9"),
    "too large": ("plant 0", 399, "-1e300", "-1e.300 in column plant 0, row 401"),
    "a mistyped year": ("time", 0, "1721-01-01 00:00:00", "--freq h: .* would make 2,656"),
}


@pytest.mark.parametrize("kind", BAD_CSVS)
def test_a_mistake_in_a_csv_is_named_with_its_place(tmp_path, kind):
    column, row, text, message = BAD_CSVS[kind]
    frame = pd.read_csv(write_csv(tmp_path / "my.csv", waves())).astype(object)
    frame.loc[row, column] = text
    frame.to_csv(tmp_path / "my.csv", index=False)
    with pytest.raises(UsageError, match=message):
        load("series", tmp_path / "my.csv", prediction_length=LENGTH, freq="h")


def test_what_is_no_series_at_all_is_an_error(tmp_path):
    frame = pd.read_csv(write_csv(tmp_path / "my.csv", waves(50)))
    for columns, freq, message in ((1, None, "no series"), (4, "ms", "--freq ms: .* would make")):
        frame.iloc[:, :columns].to_csv(tmp_path / "my.csv", index=False)
        with pytest.raises(UsageError, match=message):
            load("series", tmp_path / "my.csv", prediction_length=LENGTH, freq=freq)
    frame["time"] = range(50)
    frame.to_csv(tmp_path / "my.csv", index=False)
    with pytest.raises(UsageError, match="neither years nor seconds"):
        load("series", tmp_path / "my.csv", prediction_length=LENGTH)


def test_test_series_that_are_only_counted_come_in_turn(gluonts_folder):
    names = load("series", gluonts_folder)
    for part in ("train", "test"):
        lines = gzip.decompress((gluonts_folder / part / "data.json.gz").read_bytes()).splitlines()
        numbered = "".join(json.dumps(json.loads(line) | {"item_id": i}) + "\n" for i, line in enumerate(lines))
        (gluonts_folder / part / "data.json.gz").write_bytes(gzip.compress(numbered.encode()))
    data = load("series", gluonts_folder)
    assert data.shape == (LENGTH, 3) and data.facts.names == ["0", "1", "2"]
    np.testing.assert_array_equal(data.windows.truth, names.windows.truth)


def test_missing_rows_and_columns_without_a_number_are_said(tmp_path, capsys):
    frame = pd.read_csv(write_csv(tmp_path / "my.csv", waves()))
    frame["plant 1"] = np.nan
    frame.drop(index=[5, 9, 50]).to_csv(tmp_path / "my.csv", index=False)
    data = load("series", tmp_path, prediction_length=LENGTH)  # the folder, which holds this table alone
    assert data.facts.names == ["plant 0", "plant 2"] and np.isnan(data.items[0].values[[5, 9, 50]]).all()
    said = capsys.readouterr().out
    assert "3 of 400 rows are missing" in said and "plant 1 left out, without a number" in said


def test_a_week_is_forecast_under_one_date_on_the_weekday_of_the_rows(tmp_path, ddpm_command):
    write_csv(tmp_path / "my.csv", waves(80, 1), freq="W-TUE", start="2022-01-04")
    flags = ["--prediction_length", LENGTH, *TINY]
    assert ddpm_command("--dataset", "series", "--data_dir", tmp_path / "my.csv", *flags).returncode == 0
    assert ddpm_command("--sample", "exps/series_base/checkpoint.pt").returncode == 0
    (path,) = (tmp_path / "exps").rglob("samples/*/forecast.csv")
    times = pd.to_datetime(pd.read_csv(path)["time"])
    assert times[0] == pd.Timestamp("2022-01-04") + pd.Timedelta(weeks=80) and set(times.dt.day_name()) == {"Tuesday"}


@pytest.mark.parametrize("files", [[], ["a.csv", "b.csv"]])
def test_a_folder_with_no_table_or_several_is_an_error_that_names_them(files, tmp_path):
    for name in files:
        write_csv(tmp_path / name, waves(50))
    with pytest.raises(UsageError, match=r"a\.csv, b\.csv" if files else "no table"):
        load("series", tmp_path, prediction_length=LENGTH)


def test_what_a_gluonts_folder_has_and_is_not_used_is_said(gluonts_folder, capsys):
    path = gluonts_folder / "train" / "data.json.gz"
    rows = [json.loads(line) | {"feat_static_real": [1.0]} for line in gzip.decompress(path.read_bytes()).splitlines()]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    load("series", gluonts_folder)
    assert (
        "3 series, 2024-01-01 00:00 to 2024-01-17 15:00, every h; 0 values missing; feat_static_real not used"
        in capsys.readouterr().out
    )
    (gluonts_folder / "metadata.json").write_text(json.dumps({"freq": "h", "prediction_length": -3}))
    with pytest.raises(UsageError, match="--prediction_length"):
        load("series", gluonts_folder)


ODD = {  # in an entry: what is said of it, or None where it is read
    "categories": ({"feat_static_cat": [-(10**8)]}, None),
    "covariates": ({"feat_dynamic_real": [[1e25] * HOURS]}, None),
    "large covariates": ({"feat_dynamic_real": [[1e300] * HOURS]}, "a value larger than"),
    "fewer covariates": ({"feat_dynamic_real": [[1.0] * HOURS] * 2}, "entries have 0 to 2 series in feat_dynamic_real"),
    "dimensions": ({"target": [[1.0] * 90] * 2}, "."),
    "start": ({"start": None}, "a series has no time as its start"),
    "word": ({"feat_static_cat": ["a"]}, "cannot be read|not whole"),
    "nested": ({"target": [[[1.0]]]}, "."),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_entries_of_a_gluonts_folder_are_read_or_refused_in_one_line(gluonts_folder, kind):
    entry, message = ODD[kind]
    for part in ("train", "test"):
        path = gluonts_folder / part / "data.json.gz"
        lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        plain = {} if kind == "fewer covariates" else {key: np.zeros_like(part).tolist() for key, part in entry.items()}
        plain = {key: part for key, part in plain.items() if key.startswith("feat")}
        lines = [line | (entry if line["item_id"] == "site 0" else plain) for line in lines]
        path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    if message is None:
        data = load("series", gluonts_folder, form="panel")
        assert restore(data.facts.model_dump()).facts.equal(data.facts)
    else:
        with pytest.raises(UsageError, match=message) as error:
            load("series", gluonts_folder)
        assert len(str(error.value)) < 600


def test_of_a_file_beside_the_data_nothing_is_logged(gluonts_folder, caplog):
    (gluonts_folder / "train" / "readme.txt").write_text("x")
    assert load("series", gluonts_folder).shape == (LENGTH, 3) and not caplog.records


def test_a_tsf_file_tells_how_far_to_forecast(tmp_path, ddpm_command):
    values = ",".join(f"{value:.2f}" for value in waves(120, 1)[:, 0])
    lines = ["@attribute series_name string", "@attribute start_timestamp date", "@frequency monthly", "@horizon 7"]
    text = "\n".join([*lines, "@missing false", "@equallength true", "@data", f"T1:2000-01-01 00-00-00:{values}"])
    (tmp_path / "my.tsf").write_text(text + "\n")
    assert load("series", tmp_path / "my.tsf").shape == (7, 1)
    assert load("series", tmp_path / "my.tsf", prediction_length=3).shape == (3, 1)


def test_flags_of_tables_are_refused_on_a_folder_of_gluonts(gluonts_folder):
    with pytest.raises(UsageError, match="--decimal: has no effect"):
        load("series", gluonts_folder, decimal=",")
