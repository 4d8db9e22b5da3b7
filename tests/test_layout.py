"""The house: imports run one way."""

import ast

import pytest
from helpers import ROOT

TOP = {path.stem for path in ROOT.glob("*.py")}
PACKAGE = sorted((ROOT / "tiny_diffusion").glob("*.py"))


def imported(path):
    """The modules that a file imports anywhere in it: datasets, tiny_diffusion.images ..."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_the_package_imports_no_top_level_file_but_the_embeddings(path):
    assert set(imported(path)) & TOP <= {"positional_embeddings"}


def test_models_and_data_do_not_know_each_other():
    models, datasets = (set(imported(ROOT / f"{name}.py")) for name in ("models", "datasets"))
    assert models & TOP == {"positional_embeddings"} and not any(name.startswith("tiny_diffusion") for name in models)
    assert not datasets & TOP


def test_no_file_imports_one_that_imports_it():
    """Neither at once nor by way of others."""
    files = {f"tiny_diffusion.{path.stem}": path for path in PACKAGE} | {name: ROOT / f"{name}.py" for name in TOP}
    left = {name: {other for other in imported(path) if other in files} for name, path in files.items()}
    while free := [name for name, others in left.items() if not others & set(left)]:
        for name in free:
            del left[name]
    assert not left, "a circle"
