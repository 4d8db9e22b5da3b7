"""ablations.ipynb, from the first cell to the last, in small."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient

TINY = """
IMAGES = "digits"
small = {"epochs": 2, "save_every": 1, "num_samples": 10}
BASES = {POINTS: small | {"num_timesteps": 20}, IMAGES: small | {"hidden_size": 16, "num_timesteps": 20}, SERIES: {}}
STUDENTS = {POINTS: {"epochs": 2, "save_every": 1}, IMAGES: {"epochs": 1, "save_every": 1}}
SCORES = {POINTS: ("distance_to_data", 50), IMAGES: ("bits_per_dim", 20), SERIES: ("crps", 5)}
SEEDS = {POINTS: 2, IMAGES: 1, SERIES: 1}
KEPT = {SERIES}
ROWS = 1
"""


@pytest.fixture
def notebook(tmp_path):
    """The notebook in a folder of its own, with a cell that makes it small."""
    for path in [*ROOT.glob("*.py"), ROOT / "static", ROOT / "tiny_diffusion"]:
        (shutil.copytree if path.is_dir() else shutil.copy)(path, tmp_path / path.name)
    notebook = nbformat.read(ROOT / "ablations.ipynb", 4)
    (settings,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    notebook.cells.insert(settings + 1, nbformat.v4.new_code_cell(TINY))
    return NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}})


def pictures(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in outputs if "image/png" in output.get("data", {})]


def test_the_notebook_runs_and_a_second_time_trains_nothing(notebook, tmp_path):
    notebook.execute()
    studies = sum("\nstudy(" in "\n" + cell.source for cell in notebook.nb.cells)
    assert len(pictures(notebook.nb)) == studies > 10
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("exps/*/checkpoint.pt")}
    assert len(runs) > 5 and all((path.parent / "metrics.json").exists() for path in runs)
    assert (tmp_path / "static" / "ablation_digits_beta_schedule.png").exists()
    notebook.nb.cells = notebook.nb.cells[: 2 * len(notebook.nb.cells) // 5]
    notebook.execute()
    assert runs == {path: path.stat().st_mtime_ns for path in tmp_path.glob("exps/*/checkpoint.pt")}


def test_the_notebook_keeps_its_outputs_and_is_small():
    path = Path(ROOT / "ablations.ipynb")
    kept = nbformat.read(path, 4)
    assert os.path.getsize(path) < 8e6
    assert len(pictures(kept)) == sum("\nstudy(" in "\n" + cell.source for cell in kept.cells)
    assert all(cell.execution_count for cell in kept.cells if cell.cell_type == "code")
