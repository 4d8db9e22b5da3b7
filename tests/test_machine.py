"""The machine: noise that depends on a sample's number alone, memory that is kept, what is refused in one line."""

import subprocess
import sys

import psutil
import pytest
import torch

from tiny_diffusion.machine import (
    NOISE_BLOCK,
    check_memory,
    choose_device,
    explained,
    noise_of,
    paired_noise_of,
    seed_from,
    set_threads,
)
from tiny_diffusion.messages import UsageError


def test_noise_depends_on_a_sample_s_number_and_not_on_its_batch():
    number = 3 * NOISE_BLOCK
    draw = noise_of(7, range(number), "cpu")
    whole = [draw((2, 3)) for _ in range(2)]  # one draw after the other
    assert whole[0].shape == (number, 2, 3) and not torch.equal(*whole)
    for numbers in (range(1), range(5, 9), range(NOISE_BLOCK - 1, 2 * NOISE_BLOCK + 1), range(number - 1, number)):
        draw = noise_of(7, numbers, "cpu")
        for drawn in whole:
            assert torch.equal(draw((2, 3)), drawn[numbers.start : numbers.stop])
    assert not torch.equal(noise_of(8, range(number), "cpu")((2, 3)), whole[0])


def test_every_second_path_of_a_history_has_the_negated_noise_of_the_one_before():
    whole = paired_noise_of(7, range(5 * 40), "cpu", 5)((2, 3))
    pairs = whole.view(20, 2, 5, 2, 3)
    assert torch.equal(pairs[:, 1], -pairs[:, 0]) and len(pairs[:, 0].unique()) == pairs[:, 0].numel()
    for paths in (range(1), range(3, 8), range(39, 40)):
        drawn = paired_noise_of(7, range(5 * paths.start, 5 * paths.stop), "cpu", 5)((2, 3))
        assert torch.equal(drawn, whole[5 * paths.start : 5 * paths.stop])


def test_seeds_of_epochs_and_processes_differ():
    seeds = [seed_from(*numbers) for numbers in ((0, 1), (0, 2), (1, 1), (0, 1, 1), (0, 1, 2))]
    assert len(set(seeds)) == len(seeds) and seed_from(0, 1) == seed_from(0, 1)


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:9999", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_and_named(name):
    with pytest.raises(UsageError, match=f"--device {name}: "):
        choose_device(name)


@pytest.mark.parametrize(
    "modality, busy, threads",
    [("images", [3] * 8, 8), ("images", [100] * 5 + [10] * 3, 3), ("points", [0] * 8, 4), ("points", [100] * 8, 1)],
)
def test_threads_are_as_many_as_cores_are_free(monkeypatch, modality, busy, threads):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval, percpu: busy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    assert set_threads(None, modality) == threads and set_threads(3, modality) == 3


def test_more_than_the_memory_is_refused_before_it_is_asked_for():
    check_memory("--hidden_size 8", 1e6, "cpu")
    with pytest.raises(UsageError, match=r"--hidden_size 8: 1000000 GB, of \d+ GB of memory; make it smaller"):
        check_memory("--hidden_size 8", 1e15, "cpu")


@pytest.mark.parametrize(
    "error, told",
    [
        (OSError(28, "No space left", "a.pt"), "a.pt: No space left; "),
        (MemoryError(), "out of memory; make --train_batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (torch.OutOfMemoryError(), "out of memory"),
    ],
)
def test_what_the_machine_refuses_is_told_with_a_remedy(error, told):
    with pytest.raises(UsageError, match=told), explained():
        raise error


def test_a_mistake_in_the_program_is_not_explained_away():
    with pytest.raises(RuntimeError, match="shapes"), explained():
        raise RuntimeError("shapes do not fit")


@pytest.mark.skipif(sys.platform != "linux", reason="other allocators")
def test_freed_memory_is_kept_for_the_next_step():
    steps = """
import ctypes, resource
from tiny_diffusion.machine import keep_memory
KEEP
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.memset.argtypes, libc.free.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t), (ctypes.c_void_p,)
def step():
    blocks = [libc.malloc(2**24) for _ in range(8)]  # 128 MB
    for block in blocks:
        libc.memset(block, 1, 2**24)
    for block in blocks:
        libc.free(block)
step(), step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept, usual = (
        int(subprocess.check_output([sys.executable, "-c", steps.replace("KEEP", call)], text=True))
        for call in ("keep_memory()", "")
    )
    assert kept < usual / 10
