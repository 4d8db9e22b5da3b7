import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))


@pytest.fixture
def ddpm_command(tmp_path):
    """Run `python ddpm.py ARGUMENTS` in an empty folder, as a user would; returns the finished process."""
    import subprocess

    def run(*arguments, launcher=(sys.executable,), **options):
        command = [*launcher, str(ROOT / "ddpm.py"), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, **options)

    return run
