"""The table of data sets: each row can be found, loaded and restored from what a checkpoint keeps."""

import numpy as np
import pytest
import torch
from helpers import load, remembered

import datasets
import ddpm
from datasets import restore
from tiny_diffusion.data import Data
from tiny_diffusion.messages import UsageError


def test_a_data_set_is_restored_from_its_facts():
    for name in ("dino", "digits"):
        data = load(name)
        remembered = restore(data.facts.model_dump())
        x = torch.rand(30, *data.shape)
        assert np.array_equal(data.render(x), remembered.render(x))
        assert np.array_equal(data.decode(x), remembered.decode(x))


def test_limit_trains_on_random_items_of_every_class():
    data = load("digits", limit=10)
    assert len(data.train) == 10 and len(data.test) == 297
    assert sorted(data.labels[data.train]) == list(range(10))
    assert np.array_equal(load("digits", limit=10).train, data.train) and data.train.max() > 100
    assert sum(len(batch[0]) for batch in data.batches(10, 0, 1, "cpu")) == 10


def test_every_row_of_the_table_has_a_reader_that_says_what_it_reads():
    for name, (modality, reader, *_) in datasets.DATASETS.items():
        assert datasets.find(reader).__doc__, name
        kind = datasets.find(datasets.MODALITIES[modality])
        assert issubclass(kind, Data) and kind.modality == modality == datasets.modality_of(name)
        assert modality in ddpm.DEFAULTS["epochs"]


@pytest.mark.parametrize("name", ["dino", "digits"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "dragon"},
        {"name": 3},
        {"shape": []},
        {"shape": [0]},
        {"shape": ["8"]},
        {"shape": [2.0]},
        {"classes": []},
        {"classes": [1, 2]},
        {"mean": "0"},
        {"mean": [[0.0]]},
        {"std": 0.0},
        {"std": float("nan")},
        {"limits": [1.0]},
        {"limits": [2.0, 1.0]},
        {"dtype": "object"},
    ],
    ids=str,
)
def test_facts_of_wrong_kinds_or_sizes_are_refused(name, wrong, tmp_path):
    facts = load(name).facts
    assert remembered(facts.model_dump(), tmp_path / "a.pt").facts.equal(facts)
    with pytest.raises(UsageError, match=r"a\.pt: not a checkpoint|--dataset dragon"):
        remembered(facts.model_dump() | wrong, tmp_path / "a.pt")


def test_facts_stay_as_they_are():
    """They are what a checkpoint holds, and what is trained."""
    facts = load("digits").facts
    with pytest.raises(ValueError, match="frozen"):
        facts.classes = None
    changed = facts.model_copy(update={"classes": None})
    assert not facts.equal(changed) and facts.equal(facts.model_copy())
