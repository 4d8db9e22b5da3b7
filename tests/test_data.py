"""What every modality offers: batches, classes, samples on the disk, comparisons with the data."""

import numpy as np
import pytest
import torch
from helpers import load
from PIL import Image

from datasets import restore
from tiny_diffusion.messages import UsageError


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


def test_streaming_yields_what_resident_data_does(monkeypatch):
    data = load("digits")
    resident = list(data.batches(100, 0, 1, "cpu"))
    monkeypatch.setattr("tiny_diffusion.data.RESIDENT_BYTES", 0)
    streamed = list(data.batches(100, 0, 1, "cpu"))
    assert len(streamed) == len(resident)
    for one, other in zip(streamed, resident):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


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


def test_saved_samples_are_in_raw_units(tmp_path):
    data = load("digits")
    data.save(data.encode(torch.from_numpy(data.items[:12])), tmp_path)
    assert np.array_equal(np.load(tmp_path / "samples.npy"), data.items[:12])
    assert np.asarray(Image.open(tmp_path / "samples.png")).shape == (100, 500, 3)


@pytest.mark.parametrize("name", ["digits", "moons"])
def test_copies_are_far_nearer_to_the_training_items_than_held_out_items_are(name):
    data = load(name)
    x = data.encode(torch.from_numpy(data.items))
    copies, true = (data.score(x[part])["distance_to_training_items_ratio"] for part in (data.train[:200], data.test))
    assert copies < 0.01 and true == pytest.approx(1, abs=0.1)


def test_samples_of_one_class_are_compared_with_that_class():
    data = load("digits").of_class("7")
    assert set(data.labels[data.train]) == set(data.labels[data.test]) == {7}
    assert len(load("digits").of_class(None).train) == 1500
