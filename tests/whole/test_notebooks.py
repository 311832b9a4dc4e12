"""Every notebook runs from the first cell to the last, and is kept without outputs."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Jupyter's own
    import nbclient
    import nbformat

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def test_the_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == [
        "analysis.ipynb",
        "distributed_downsampling.ipynb",
        "lazy_slicing.ipynb",
        "quickstart.ipynb",
        "viewer.ipynb",
    ]


@each_notebook
def test_notebook_is_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what Jupyter warns of is not ours
@each_notebook
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"
    told = [output.text for output in outputs if output.get("name") == "stderr"]
    # A notebook kills a worker on purpose.
    assert not [text for text in told if "Restarting worker" not in text]
    assert not list(tmp_path.iterdir()), "the notebook left files behind"
