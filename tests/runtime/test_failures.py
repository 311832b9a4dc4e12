"""A bug in a user's function is told once, and briefly, whatever runs the chunks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from wkdask.runtime import executors

PROGRAM = """
import sys
import wkdask
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

def helper(number):
    return {}["missing"]

def bug(chunk):
    view, number = chunk
    helper(number)

if __name__ == "__main__":
    dataset = wkdask.create(sys.argv[1], voxel_size=(1, 1, 1))
    box = wkdask.BoundingBox((0, 0, 0), (48, 48, 48))
    mag = dataset.add_layer("a", "color", "uint8", bounding_box=box).add_mag(1, 8, 2)
    if sys.argv[2] == "cluster":
        from distributed import Client, LocalCluster
        with LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster:
            with Client(cluster):
                mag.for_each_chunk(bug)
    else:
        pools = {"threads": ThreadPoolExecutor, "processes": ProcessPoolExecutor}
        with pools[sys.argv[2]](2) as pool:
            mag.for_each_chunk(bug, executor=pool)
"""


@pytest.mark.parametrize(
    "kind",
    ["cluster", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("threads", "processes"))],
)
def test_a_bug_is_told_once(tmp_path: Path, kind: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(tmp_path / "tissue"), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = done.stderr.rstrip().splitlines()
    assert done.returncode == 1
    assert "Compute Failed" not in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert sum("wkdask/" in line for line in lines if line.startswith("  File")) <= 2
    assert lines[-2] == "KeyError: 'missing'"
    assert lines[-1].startswith("in chunk ")
    frames = [line.split(" in ")[-1] for line in lines if line.startswith("  File")]
    assert frames[-2:] == ["bug", "helper"]


def test_a_worker_that_dies_while_the_cluster_is_asked_is_left_out() -> None:
    answers = {"tcp://a": "0.1.0", "tcp://b": OSError("the worker is gone")}
    assert executors._answers(answers) == {"tcp://a": "0.1.0"}
    with pytest.raises(ImportError):
        executors._answers({**answers, "tcp://c": ImportError("no wkdask here")})
