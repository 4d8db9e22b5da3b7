import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


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
