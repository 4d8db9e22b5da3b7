"""The files of checkpoints: which epochs are kept, and where a checkpoint or a model that comes along is found."""

import pytest
import torch
from helpers import files

from tiny_diffusion.checkpoints import GIF_FRAMES, MODELS, find_checkpoint, kept_epochs, save, save_kept, spacing


@pytest.mark.parametrize("save_every", [1, 3])
def test_kept_checkpoints_are_bounded_and_evenly_spread(save_every):
    for epoch in range(1, 500):
        apart = spacing(save_every, epoch)
        kept = [other for other in range(1, epoch + 1) if other % apart == 0]
        assert len(kept) <= GIF_FRAMES and apart % save_every == 0
        assert len(kept) >= min(epoch // save_every, GIF_FRAMES // 2)


def test_a_kept_checkpoint_has_what_samples_come_from_and_those_between_go(tmp_path, monkeypatch):
    monkeypatch.setattr("tiny_diffusion.checkpoints.GIF_FRAMES", 4)
    state = {"config": {"save_every": 1}, "data": {}, "average": {"a": torch.ones(2)}, "model": {}, "step": 3}
    for epoch in range(1, 7):
        save_kept(state | {"history": [{}] * epoch}, torch.full((1, 2), epoch), tmp_path / "checkpoints")
    assert list(kept_epochs(tmp_path)) == [2, 4, 6]
    kept = torch.load(kept_epochs(tmp_path)[4], weights_only=True)
    assert set(kept) == {"config", "data", "average", "samples"} and kept["samples"].tolist() == [[4, 4]]


def test_a_model_that_comes_along_is_found_by_its_name_unless_a_file_has_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("mnist") == MODELS / "mnist.pt"
    assert find_checkpoint("a/b.pt").parts == ("a", "b.pt")
    save({}, tmp_path / "mnist")
    assert files(tmp_path).keys() == {"mnist"} and find_checkpoint("mnist").absolute() == tmp_path / "mnist"
