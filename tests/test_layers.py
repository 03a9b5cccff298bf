"""The house: imports go one way, kernels <- blocks <- archsearch, and --help loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "kernels": ("archsearch", "..blocks", "pydantic", "optuna", "networkx", "yaml"),
    "blocks": ("archsearch", "pydantic", "optuna", "networkx", "yaml"),
    "archsearch/standalone": ("archsearch", "..", "pydantic", "optuna", "networkx", "safetensors"),
}


def imported(path: Path) -> list[str]:
    """What a file imports, relative imports with their dots."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append("." * node.level + (node.module or ""))
    return names


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_imports_go_one_way(folder: str) -> None:
    files = list((ROOT / folder).glob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            assert not name.startswith(FORBIDDEN[folder]), f"{path}: imports {name}"


def test_the_links_lead_to_the_folders() -> None:
    for name in ("blocks", "kernels"):
        assert (ROOT / "archsearch" / name).resolve() == (ROOT / name).resolve()


@pytest.mark.parametrize("module", ["archsearch", "archsearch.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    heavy = (
        "torch",
        "optuna",
        "networkx",
        "numpy",
        "sqlalchemy",
        "torchmetrics",
        "datasets",
        "plotly",
    )
    code = f"import {module}, sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_public_names() -> None:
    import archsearch

    assert archsearch.__all__ == [
        "Cost", "Model", "ModelSpec", "Result", "Space", "Task",
        "build", "cost", "load_space", "load_spec", "reference", "study", "task",
    ]  # fmt: skip
    for name in archsearch.__all__:
        assert callable(getattr(archsearch, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = archsearch.nothing
