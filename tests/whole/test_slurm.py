"""Everything that runs on SLURM, on a real one of this machine: docs/slurm.md, and jobs that end.

Jobs are killed, reach their walltime, or lose their node in the middle of a run; whatever happens,
the voxels are those of NumPy or of the same run by threads, and nothing else is left.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from slurm import NODES, Slurm, run_slurm, wait_until, why_not

import wkdask
from wkdask.runtime.journal import JOB_NAME
from wkdask.storage.atomic import TEMPORARY_SUFFIX
from wkdask.storage.volume import JOURNALS_NAME

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "slurm.md"
# What differs on this machine from the page.
HERE = {
    'account="my-project",': "",
    "cores=8": "cores=1",
    "cores: 8": "cores: 1",
    "64GB": "1GB",
    "ib0": "lo",
    "04:00:00": "00:05:00",
    "jobs=20": "jobs=2",
    "jobs: 20": "jobs: 2",
}
LIFETIME = ["--no-dashboard"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A SLURM with three nodes, which the commands of this process and its children find."""
    if reason := why_not():
        pytest.skip(f"there is no SLURM here: {reason}")
    with run_slurm(tmp_path_factory.mktemp("slurm")) as running, pytest.MonkeyPatch.context() as at:
        for name, value in running.environment.items():
            at.setenv(name, value)
        yield running


@dataclass(frozen=True)
class Tissue:
    """A dataset with a layer `color` of known voxels, and an empty one `membranes`."""

    path: Path
    data: np.ndarray[Any, Any]

    @property
    def source(self) -> wkdask.MagView:
        return wkdask.open(self.path)["color"][1]

    @property
    def target(self) -> wkdask.MagView:
        return wkdask.open(self.path)["membranes"][1]

    def files_done(self) -> int:
        return sum(1 for _ in self.target.volume.files())

    def check_membranes(self) -> None:
        np.testing.assert_array_equal(self.target.read(), (self.data < 90).astype("uint8"))
        self.check_rest()

    def check_pyramid(self, name: str) -> None:
        """Compare a pyramid with one that threads make from the same mag 1."""
        other = make_tissue(self.path.with_name("other"))
        made = wkdask.open(self.path)[name]
        copy = wkdask.open(other.path)[name]
        with dask.config.set(scheduler="threads"):
            copy[1].write(made[1].read())
            copy.downsample()
            assert len(copy.mags) > 2
            assert wkdask.equal(made, copy)
        self.check_rest()

    def check_rest(self) -> None:
        """Raise if anything is left of runs, or is not as it must be."""
        assert list(self.path.rglob(f"*{TEMPORARY_SUFFIX}")) == [], "unfinished files, or claims"
        files = {path for path in self.path.rglob("*") if path.is_file()}
        voxels = {path for path in files if path.suffix == ".wkw"}
        # A finished job is one record, by which the same call again knows that all is done, and a
        # note of what it was.
        journals = {path for path in files if JOURNALS_NAME in path.parts}
        assert files - voxels - journals == {self.path / "datasource-properties.json"}
        assert {path.name for path in journals} <= {"all", JOB_NAME}
        with dask.config.set(scheduler="threads"):
            assert wkdask.check(self.path, level=2).findings == ()


def make_tissue(path: Path) -> Tissue:
    box = wkdask.BoundingBox((0, 0, 0), (64, 64, 32))
    dataset = wkdask.create(path, voxel_size=(8, 8, 8))
    for name in ("color", "membranes"):
        layer = dataset.add_layer(name, "color", "uint8", bounding_box=box)
        layer.add_mag(1, block_edge=8, blocks_per_file_edge=1)
    data = np.random.default_rng(0).integers(0, 200, (1, *box.size)).astype(np.uint8)
    with dask.config.set(scheduler="threads"):
        dataset["color"][1].write(data)
    return Tissue(path, data)


@pytest.fixture
def tissue(tmp_path: Path) -> Tissue:
    return make_tissue(tmp_path / "tissue")


@pytest.fixture(autouse=True)
def no_job_is_left(slurm: Slurm) -> Iterator[None]:
    yield
    # Those that were canceled a moment ago are still to be cleaned up after.
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: slurm.jobs() == [], "canceled jobs", 10)
    left = slurm.jobs()
    slurm.cancel(*left)
    for node in NODES:
        if slurm.state_of(node) != "idle":
            slurm.update(node, "RESUME")
    assert left == []


# --- what the page says ---------------------------------------------------------------------------


def blocks_of_page(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def adapted(text: str, folder: Path) -> str:
    """Return a block of the page for this machine: other numbers and paths, and nothing else."""
    for theirs, ours in HERE.items():
        text = text.replace(theirs, ours)
    text = re.sub(r'"/shared/', f'"{folder}/', re.sub(r'"(/tmp|/home)', rf'"{folder}\1', text))
    for place in ("tmp", "home/me/.dask"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    return text


def run_script(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(text)
    return subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, cwd=folder
    )


def test_the_script_of_the_page(slurm: Slurm, tissue: Tissue, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    script = blocks_of_page("{code-block} python")[0]
    done = run_script(adapted(script, tmp_path), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("failed 0") == 2
    tissue.check_membranes()
    tissue.check_pyramid("membranes")
    assert list((tmp_path / "home" / "me" / "logs").iterdir()), "jobs have run"


def test_the_notebook_of_the_page(slurm: Slurm, tissue: Tissue, tmp_path: Path) -> None:
    import nbclient
    import nbformat

    cells = [adapted(cell, tmp_path) for cell in blocks_of_page("{code-block} python")[1:]]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    shown = "".join(output.get("data", {}).get("text/plain", "") for output in outputs)
    assert "RunReport(" in shown
    assert "failed=0" in shown
    tissue.check_pyramid("color")


def run_command(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from wkdask.cli.main import main; main()", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=folder,
    )  # fmt: skip


def test_the_command_of_the_page(slurm: Slurm, tissue: Tissue, tmp_path: Path) -> None:
    (text,) = blocks_of_page("yaml")
    (tmp_path / "slurm.yaml").write_text(adapted(text, tmp_path))
    (line,) = [block for block in blocks_of_page("sh") if "--cluster" in block]
    done = run_command(tmp_path, *line.split()[1:])
    assert done.returncode == 0, done.stderr
    assert done.stderr == "Waiting for the first worker of SLURMCluster.\n"
    assert "failed 0" in done.stdout
    tissue.check_pyramid("color")


def test_a_command_on_a_partition_that_is_not_there(
    slurm: Slurm, tissue: Tissue, tmp_path: Path, snapshot: Any
) -> None:
    (text,) = blocks_of_page("yaml")
    text = adapted(text, tmp_path).replace("queue: batch\n", "queue: nowhere\n")
    (tmp_path / "slurm.yaml").write_text(text)
    before = snapshot(tissue.path)
    done = run_command(tmp_path, "downsample", tissue.path, "--cluster", "slurm.yaml")
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("Error: a worker of SLURMCluster can't be started: ")
    assert "invalid partition specified: nowhere" in lines[-1]
    assert "Traceback" not in done.stderr
    assert snapshot(tissue.path) == before


def test_options_in_the_configuration_of_jobqueue(
    slurm: Slurm, tissue: Tissue, tmp_path: Path
) -> None:
    """The file of the command names the class, and dask's configuration the rest."""
    settings = {
        "DASK_JOBQUEUE__SLURM__CORES": "1",
        "DASK_JOBQUEUE__SLURM__PROCESSES": "1",
        "DASK_JOBQUEUE__SLURM__MEMORY": "1GB",
        "DASK_JOBQUEUE__SLURM__INTERFACE": "lo",
        "DASK_JOBQUEUE__SLURM__NAME": "by-configuration",
        "DASK_JOBQUEUE__SLURM__SCHEDULER_OPTIONS": "{'dashboard_address': '127.0.0.1:0'}",
    }
    file = tmp_path / "slurm.yaml"
    file.write_text(
        "cluster: dask_jobqueue.SLURMCluster\nadapt: {minimum_jobs: 0, maximum_jobs: 2}"
    )
    with pytest.MonkeyPatch.context() as at:
        for name, value in settings.items():
            at.setenv(name, value)
        done = run_command(tmp_path, "downsample", tissue.path, "--cluster", "slurm.yaml")
    assert done.returncode == 0, done.stderr
    assert "by-configuration" in slurm.call("squeue", "--states=all", "--format=%j")
    tissue.check_pyramid("color")


# --- jobs that end in the middle ------------------------------------------------------------------


@contextlib.contextmanager
def a_cluster(folder: Path, **options: Any) -> Iterator[Any]:
    """A cluster on SLURM without workers, which soon finds out that a job is gone."""
    from dask_jobqueue import SLURMCluster
    from distributed import Client

    given = {"cores": 1, "processes": 1, "walltime": "00:05:00", "worker_extra_args": LIFETIME}
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}),
        SLURMCluster(
            queue="batch", memory="1GB", interface="lo", local_directory=str(folder / "dask"),
            log_directory=str(folder / "logs"), **(given | options),
            scheduler_options={"interface": "lo", "dashboard_address": "127.0.0.1:0"},
        ) as cluster,
        Client(cluster),
    ):  # fmt: skip
        yield cluster


def finding(folder: Path, held: int = -1, seconds: float = 0.0) -> Callable[[Any], None]:
    """Return the function of the page, which notes its job and holds one chunk until it may go."""
    notes = str(folder)

    def find(chunk: Any) -> None:
        source, target, i = chunk
        job = os.environ["SLURM_JOB_ID"]
        Path(notes, f"chunk-{i}-{job}").touch()
        while i == held and not Path(notes, "go").exists():
            time.sleep(0.05)
        time.sleep(seconds)
        target.write((source.read() < 90).astype("uint8"))

    return find


def jobs_of(folder: Path, chunk: object = "*") -> set[str]:
    """Return the ids of the jobs that have begun a chunk, or any."""
    return {path.name.split("-")[2] for path in folder.glob(f"chunk-{chunk}-*")}


@contextlib.contextmanager
def held_in_the_middle(tissue: Tissue, folder: Path) -> Iterator[tuple[str, Future[Any]]]:
    """Begin a run, and yield the job that holds a chunk of it, and its end; then let it go on."""
    find = finding(folder, held=40)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(tissue.source.for_zipped_chunks, find, tissue.target, resume=True)
        try:
            wait_until(lambda: jobs_of(folder, 40) or run.done(), "chunk 40 to begin")
            (job,) = jobs_of(folder, 40)
            assert tissue.files_done() < 256
            yield job, run
        finally:
            (folder / "go").touch()


def check_ran_elsewhere(tissue: Tissue, folder: Path, job: str, report: Any) -> None:
    assert report.ok
    assert len(jobs_of(folder, 40)) == 2, "it began again in another job"
    assert job in jobs_of(folder, 40)
    assert report.done == 256
    tissue.check_membranes()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("how", ["scale", "adapt"])
def test_a_job_is_canceled(
    slurm: Slurm, tissue: Tissue, tmp_path: Path, how: str, processes: int
) -> None:
    """The only job: nothing could go on if no other one was submitted."""
    with a_cluster(tmp_path, cores=processes, processes=processes) as cluster:
        if how == "scale":
            cluster.scale(jobs=1)
        else:
            cluster.adapt(minimum_jobs=1, maximum_jobs=1)
        with held_in_the_middle(tissue, tmp_path) as (job, run):
            slurm.cancel(job)
        check_ran_elsewhere(tissue, tmp_path, job, run.result(60))


def test_a_job_reaches_its_walltime(slurm: Slurm, tissue: Tissue, tmp_path: Path) -> None:
    """SLURM looks every half a minute, at limits of whole minutes."""
    with a_cluster(tmp_path, walltime="00:01:00") as cluster:
        cluster.scale(jobs=1)
        with held_in_the_middle(tissue, tmp_path) as (job, run):
            wait_until(lambda: job in slurm.jobs("TIMEOUT"), "the time limit", 120)
        check_ran_elsewhere(tissue, tmp_path, job, run.result(60))


def test_workers_leave_before_their_walltime(slurm: Slurm, tissue: Tissue, tmp_path: Path) -> None:
    lifetime = ["--lifetime", "8s", "--lifetime-stagger", "2s", *LIFETIME]
    with a_cluster(tmp_path, worker_extra_args=lifetime) as cluster:
        cluster.adapt(minimum_jobs=1, maximum_jobs=2)
        find = finding(tmp_path, seconds=0.08)
        report = tissue.source.for_zipped_chunks(find, tissue.target, resume=True)
    assert report.done == 256
    assert len(jobs_of(tmp_path)) > 2
    tissue.check_membranes()


def test_a_node_drains(slurm: Slurm, tissue: Tissue, tmp_path: Path) -> None:
    with a_cluster(tmp_path) as cluster:
        cluster.scale(jobs=1)
        with held_in_the_middle(tissue, tmp_path) as (job, run):
            node = slurm.node_of(job)
            slurm.update(node, "DRAIN")
            assert slurm.state_of(node) == "draining"
            slurm.cancel(job)
            wait_until(lambda: slurm.state_of(node) == "drained", "the node to be empty")
        check_ran_elsewhere(tissue, tmp_path, job, run.result(60))
        (other,) = jobs_of(tmp_path, 40) - {job}
        assert slurm.node_of(other) in set(NODES) - {node}


def test_from_no_job_and_back(slurm: Slurm, tissue: Tissue, tmp_path: Path) -> None:
    with a_cluster(tmp_path) as cluster:
        cluster.adapt(minimum_jobs=0, maximum_jobs=2, interval="200ms")
        assert slurm.jobs() == []
        report = tissue.source.for_zipped_chunks(finding(tmp_path), tissue.target)
        assert report.done == 256
        wait_until(lambda: slurm.jobs() == [], "the jobs to end")
        assert wkdask.open(tissue.path)["color"].downsample().ok
        wait_until(lambda: slurm.jobs() == [], "the jobs to end again")
    tissue.check_membranes()
    tissue.check_pyramid("color")


def test_sbatch_fails_for_a_while(slurm: Slurm, tissue: Tissue, tmp_path: Path) -> None:
    with a_cluster(tmp_path) as cluster, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        cluster.scale(jobs=1)
        with held_in_the_middle(tissue, tmp_path) as (job, run):
            slurm.call("scontrol", "update", "PartitionName=batch", "State=INACTIVE")
            try:
                slurm.cancel(job)
                wait_until(lambda: warned, "a job that can't be submitted")
                assert "could not be submitted, and will be tried again" in str(warned[0].message)
            finally:
                slurm.call("scontrol", "update", "PartitionName=batch", "State=UP")
        check_ran_elsewhere(tissue, tmp_path, job, run.result(60))


# --- the script is killed -------------------------------------------------------------------------


def test_the_script_is_killed(slurm: Slurm, tissue: Tissue, tmp_path: Path) -> None:
    script = adapted(blocks_of_page("{code-block} python")[0], tmp_path)
    # Slower, so that there is a middle.
    script = script.replace("source, target, i = chunk", "source, target, i = chunk; sleep(0.1)")
    script = "from time import sleep\n" + script
    (tmp_path / "script.py").write_text(script)
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "script.py"], stdout=out, stderr=out, cwd=tmp_path
        )
    wait_until(lambda: tissue.files_done() > 20 or process.poll() is not None, "files")
    process.kill()
    process.wait()
    assert 20 < tissue.files_done() < 256
    wait_until(lambda: slurm.jobs() == [], "the workers to notice", 90)
    done = run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr
    skipped = re.findall(r"done (\d+), skipped (\d+), failed 0", done.stdout)[0]
    assert int(skipped[1]) >= 20
    assert int(skipped[0]) + int(skipped[1]) == 256
    tissue.check_membranes()
    tissue.check_pyramid("membranes")
