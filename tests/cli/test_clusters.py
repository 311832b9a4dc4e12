"""`--cluster FILE`: clusters start, run tasks and end; a bad file is one line, and that is all."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from distributed import LocalCluster

import wkdask
from wkdask.cli import clusters
from wkdask.cli.clusters import ClusterFile
from wkdask.cli.main import main
from wkdask.cli.options import Scheduler, errors_as_text, scheduler_options
from wkdask.errors import ClusterError
from wkdask.geometry import BoundingBox
from wkdask.runtime.executors import active_client

LOCAL = """
cluster: distributed.LocalCluster
options: {processes: false, threads_per_worker: 1, dashboard_address: "127.0.0.1:0"}
"""


@click.command()
@scheduler_options
def show(scheduler: Scheduler) -> None:
    """Print where tasks run."""
    with errors_as_text(), scheduler.executor() as client:
        click.echo(client.submit(os.getpid).result() == os.getpid())
        click.echo(len(client.nthreads()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


@dataclass
class Result:
    """What a command printed, and how it ended."""

    exit_code: Any
    stdout: str
    stderr: str


Command = Callable[..., Result]


@pytest.fixture
def command(capsys: Any) -> Command:
    """A function that calls `wkdask`, or another command."""

    def called(*arguments: object, of: click.Command = main) -> Result:
        with pytest.raises(SystemExit) as end:
            of([str(argument) for argument in arguments])
        return Result(end.value.code, *capsys.readouterr())

    return called


@pytest.fixture
def run(file: Path, command: Command) -> Command:
    """A function that prints where tasks run by a file with some text."""

    def ran(text: str, *arguments: str) -> Result:
        file.write_text(textwrap.dedent(text))
        return command("--cluster", file, *arguments, of=show)

    return ran


@pytest.mark.parametrize(
    ("more", "workers"),
    [
        ("", 1),
        ("scale: {n: 3}", 3),
        ("scale: {cores: 2}", 2),
        ("adapt: {minimum: 2, maximum: 2, interval: 10ms}", 1),
    ],
    ids=["as the class begins", "scale", "scale by cores", "adapt begins with what is there"],
)
def test_a_cluster_of_threads(run: Command, more: str, workers: int) -> None:
    options = LOCAL.replace("options: {", "options: {n_workers: 1, ")
    result = run(options + more)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split()[0] == "True"
    assert int(result.stdout.split()[1]) >= workers
    assert active_client(None) is None


def test_a_cluster_of_processes(run: Command) -> None:
    result = run(LOCAL.replace("processes: false", "n_workers: 1, processes: true"))
    assert (result.exit_code, result.stdout) == (0, "False\n1\n"), result.stderr


def test_the_file_of_the_page(run: Command) -> None:
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text("utf-8")
    (text,) = re.findall(r"^```yaml\n(cluster:.*?)^```", page, re.DOTALL | re.MULTILINE)
    result = run(text)
    assert (result.exit_code, result.stdout) == (0, "False\n2\n"), result.stderr


def test_adapting_from_no_worker_waits_for_the_first(run: Command) -> None:
    text = LOCAL.replace("options: {", "options: {n_workers: 0, ") + "adapt: {maximum: 2}"
    result = run(text)
    assert (result.exit_code, result.stdout) == (0, "True\n1\n"), result.stderr
    told = result.stderr.splitlines()
    assert told in ([], ["Waiting for the first worker of LocalCluster."])


def test_an_address_and_a_scheduler_file(
    file: Path, run: Command, cluster: LocalCluster, tmp_path: Path
) -> None:
    result = run(f"cluster: {cluster.scheduler_address}")
    assert (result.exit_code, result.stdout) == (0, "False\n2\n"), result.stderr
    scheduler = tmp_path / "scheduler.json"
    scheduler.write_text(json.dumps({"address": cluster.scheduler_address}))
    result = run(f"cluster: {scheduler}")
    assert (result.exit_code, result.stdout) == (0, "False\n2\n"), result.stderr
    # What others have started goes on.
    assert len(cluster.workers) == 2


BAD = {
    "no file": (None, "can't be read: No such file"),
    "no YAML": ("cluster: [", "cluster.yaml is no YAML: "),
    "no mapping": ("distributed.LocalCluster", "must say which cluster"),
    "nothing": ("", "must say which cluster"),
    "no cluster": ("options: {n_workers: 1}", "must say which cluster"),
    "cluster is empty": ("cluster: ''", "cluster is '', but must name a class such as"),
    "cluster is a number": ("cluster: 8786", "cluster is 8786, but must name a class such as"),
    "unknown key": (
        "cluster: distributed.LocalCluster\nworkers: 3",
        "has workers, but may have cluster, options, scale, adapt.",
    ),
    "options are a list": (
        "cluster: distributed.LocalCluster\noptions: [1]",
        "options is [1], but must be names with values.",
    ),
    "a time without quotes": (
        "cluster: dask_jobqueue.SLURMCluster\noptions: {walltime: 10:00:00}",
        "walltime is 36000, but must be text, as YAML takes 10:00:00 for a number. Put it in",
    ),
    "scale is a number": ("cluster: distributed.LocalCluster\nscale: 4", "scale is 4, but must be"),
    "scale and adapt": (LOCAL + "scale: {n: 1}\nadapt: {maximum: 2}", "either scale or adapt"),
    "options of an address": ("cluster: tcp://a:1\nscale: {n: 2}", "runs already"),
    "no module": ("cluster: LocalCluster", "which can't be imported (No module named"),
    "no class": ("cluster: distributed.SlurmCluster", "which can't be imported (module 'distr"),
    "a strange name": ("cluster: distributed LocalCluster", "which can't be imported (invalid"),
    "another class": ("cluster: distributed.Client", "which is no class of clusters. Name a class"),
    "a function": ("cluster: os.getcwd", "which is no class of clusters"),
    "unknown option": (
        LOCAL.replace("options: {", "options: {queue: batch, n_workers: 1, "),
        "does not take these options: ",
    ),
    "an option that can't be": (
        LOCAL.replace("processes: false", "interface: nowhere0, n_workers: 1"),
        "does not take these options: 'nowhere0' is not a valid network interface",
    ),
    "unknown scale": (
        LOCAL + "scale: {jobs: 4}",
        "scale of distributed.LocalCluster does not know",
    ),
    "unknown adapt": (
        LOCAL + "adapt: {minimal: 4}",
        "does not know minimal, but interval, maximum",
    ),
    "no workers": (
        LOCAL.replace("options: {", "options: {n_workers: 0, "),
        "LocalCluster begins without workers. Add scale, such as {n: 4}",
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of clusters that end while they begin
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_and_changes_nothing(
    file: Path, command: Command, name: str, snapshot: Any, tmp_path: Path
) -> None:
    text, words = BAD[name]
    if text is not None:
        file.write_text(text)
    dataset = make_dataset(tmp_path / "tissue")
    before = snapshot(dataset.path)
    result = command("downsample", dataset.path, "--cluster", file)
    assert result.exit_code == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1, result.stderr
    assert words in lines[0]
    assert str(file) in lines[0]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert snapshot(dataset.path) == before


def make_dataset(path: Path) -> wkdask.Dataset:
    dataset = wkdask.create(path, voxel_size=(8, 8, 8))
    box = BoundingBox((0, 0, 0), (32, 32, 32))
    layer = dataset.add_layer("color", "color", "uint8", bounding_box=box)
    mag = layer.add_mag(1, block_edge=8, blocks_per_file_edge=1)
    mag.write(np.random.default_rng(0).integers(1, 255, box.size, np.uint8))
    return dataset


@pytest.mark.parametrize("others", [("--scheduler", "threads"), ("--jobs", "2")])
def test_one_way_to_say_where(run: Command, others: tuple[str, str]) -> None:
    result = run(LOCAL, *others)
    assert result.exit_code == 2
    assert "says where tasks run. Leave --scheduler and --jobs out." in result.stderr


def test_a_scheduler_file_that_is_bad(file: Path, run: Command, tmp_path: Path) -> None:
    scheduler = tmp_path / "scheduler.json"
    for text in (None, "{", "[]", "{}"):
        if text is not None:
            scheduler.write_text(text)
        result = run(f"cluster: {scheduler}")
        assert result.exit_code == 1
        assert "scheduler.json can't be read" in result.stderr
        assert "dask scheduler --scheduler-file" in result.stderr


def test_jobqueue_is_an_extra(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    result = run("cluster: dask_jobqueue.SLURMCluster")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        'Error: dask-jobqueue is not installed. Run: pip install "wkdask[slurm]"'
    )


def test_a_worker_that_can_not_be_started(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without SLURM there is no program that submits, which only a job finds out."""
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", "/nowhere")
    text = """
    cluster: dask_jobqueue.SLURMCluster
    options:
      cores: 1
      memory: 1GB
      scheduler_options: {host: 127.0.0.1, dashboard_address: "127.0.0.1:0"}
    scale: {jobs: 1}
    """
    result = run(text)
    assert result.exit_code == 1, result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: a worker of SLURMCluster can't be st")
    assert "sbatch" in result.stderr


def test_nothing_to_do_starts_nothing(
    file: Path, command: Command, run: Command, tmp_path: Path
) -> None:
    file.write_text("cluster: distributed.LocalCluster\noptions: {wrong: 1}")
    dataset = make_dataset(tmp_path / "tissue")
    arguments = ("downsample", dataset.path, "--cluster", file)
    dry = command(*arguments, "--dry-run")
    assert dry.exit_code == 0
    assert "mag" in dry.stdout
    dataset["color"].downsample()
    assert command(*arguments).exit_code == 0


def test_a_pyramid_on_a_cluster_of_a_file(file: Path, command: Command, tmp_path: Path) -> None:
    file.write_text(LOCAL.replace("options: {", "options: {n_workers: 2, "))
    dataset, other = make_dataset(tmp_path / "tissue"), make_dataset(tmp_path / "other")
    result = command("downsample", dataset.path, "--cluster", file)
    assert result.exit_code == 0, result.stderr
    other["color"].downsample()
    assert wkdask.equal(dataset.path, other.path)


def test_an_error_of_the_work_is_no_error_of_the_file(file: Path) -> None:
    file.write_text(LOCAL.replace("options: {", "options: {n_workers: 1, "))
    said = clusters.read_cluster_file(str(file))
    with pytest.raises(ClusterError, match="lost"), Scheduler(cluster=said).executor():
        raise ClusterError("lost")


def test_running_or_not() -> None:
    assert ClusterFile("f", "tcp://a:1").is_running
    assert ClusterFile("f", "a/scheduler.json").is_running
    assert not ClusterFile("f", "dask_jobqueue.SLURMCluster").is_running
