"""What a user waits for in a fresh process: imports, the first plane, the first pyramid.

Run with `pytest tests/benchmarks/test_bench_first.py -m slow --benchmark-enable -s`. The time of
`import numba, numpy`, which nothing here can be faster than, is the reference of the same run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import wkdask
from wkdask.geometry import BoundingBox

pytestmark = pytest.mark.slow
ROUNDS = int(os.environ.get("WKDASK_BENCH_ROUNDS", 3))

STEPS = {
    "reference": "import numpy, numba",
    "plane": "import wkdask; wkdask.open({path!r})['color'][1].read((0, 0, 5), (128, 128, 1))",
    "lazy plane": "import wkdask; wkdask.open({path!r})['color'][1][0, :, :, 5].compute()",
    "pyramid": """
import wkdask, tempfile
wkdask.downsample  # the API
layer = wkdask.open({path!r})["color"]
target = wkdask.create(tempfile.mkdtemp() + "/copy", voxel_size=(8, 8, 8))
wkdask.copy(layer, target)
target["color"].downsample()
""",
}


def seconds(code: str, numba_cache: Path) -> float:
    """Return how long a fresh process takes."""
    env = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(numba_cache),
        "PYTHONPATH": str(Path(wkdask.__file__).parents[1]),
    }
    timed = f"import time; t = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)"
    done = subprocess.run(
        [sys.executable, "-c", timed], env=env, check=True, capture_output=True, text=True
    )
    return float(done.stdout.splitlines()[-1])


def test_first_use(tmp_path: Path) -> None:
    ds = wkdask.create(tmp_path / "tissue", voxel_size=(8, 8, 8))
    box = BoundingBox((0, 0, 0), (128, 128, 128))
    layer = ds.add_layer("color", "color", "uint8", bounding_box=box)
    voxels = np.random.default_rng(0).integers(0, 255, box.size, np.uint8)
    layer.add_mag(1, blocks_per_file_edge=4).write(voxels)
    found: dict[str, float] = {}
    for name, code in STEPS.items():
        code = code.format(path=str(ds.path))
        if name != "reference":
            found[f"{name}, cold"] = seconds(code, tmp_path / f"cache {name}")
        warm = [seconds(code, tmp_path / f"cache {name}") for _ in range(ROUNDS)]
        found[name] = statistics.median(warm)
    for name, took in found.items():
        sys.stdout.write(f"{name:20} {took:6.2f} s  {took / found['reference']:5.1f} x reference\n")
    assert found["plane"] < 4 * found["reference"], "the first plane needs numba and little else"
