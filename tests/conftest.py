import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["OMP_NUM_THREADS"] = "1"  # tests run side by side, one on each core


@pytest.fixture
def gluonts_folder(tmp_path):
    """Three series of one calendar in GluonTS's layout, where --data_dir has exchange-rate."""
    from helpers import waves, write_gluonts

    return write_gluonts(tmp_path / "data" / "gluonts" / "exchange_rate_nips", waves())


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
