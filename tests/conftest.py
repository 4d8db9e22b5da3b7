import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side, one on each core


def load(dataset, data_dir="data", **flags):
    """The data set that the command line's flags name."""
    import datasets
    import ddpm

    return datasets.load(ddpm.resolve({"dataset": dataset, "data_dir": data_dir} | flags))


@pytest.fixture
def ddpm_command(tmp_path, monkeypatch, capsys):
    """What `python ddpm.py ARGUMENTS` does in an empty folder, but in this process, which has PyTorch already."""
    import ddpm

    def run(*arguments):
        capsys.readouterr()
        try:
            code = ddpm.main(ddpm.parse_arguments([str(argument) for argument in arguments]))
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=out, stderr=err)

    monkeypatch.chdir(tmp_path)
    return run
