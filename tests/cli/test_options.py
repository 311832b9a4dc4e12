"""What commands share: every scheduler runs tasks and ends, and what can't be is one line."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import click
import pytest
from click.testing import CliRunner, Result
from distributed import Client

from wkdask.cli import clusters
from wkdask.cli.options import Scheduler, errors_as_text, scheduler_options, shows_bar
from wkdask.errors import ClusterError, FormatError
from wkdask.runtime.executors import active_client


@click.command()
@scheduler_options
def show(scheduler: Scheduler) -> None:
    """Print where tasks run."""
    with errors_as_text(2), scheduler.executor() as executor:
        click.echo(type(executor).__name__)
        if executor is not None:
            click.echo(executor.submit(os.getpid).result() == os.getpid())
            click.echo(str(getattr(executor, "_max_workers", None)))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(show, arguments)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        pytest.param((), "NoneType\n", id="dask decides"),
        pytest.param(("--scheduler", "threads", "--jobs", "3"), "ThreadPoolExecutor\nTrue\n3\n"),
        pytest.param(("--jobs", "2"), "ThreadPoolExecutor\nTrue\n2\n", id="jobs are threads"),
        pytest.param(
            ("--scheduler", "processes", "--jobs", "1"), "ProcessPoolExecutor\nFalse\n1\n"
        ),
    ],
)
def test_schedulers_here(arguments, printed):
    result = run(*arguments)
    assert (result.exit_code, result.output) == (0, printed)


def test_a_cluster_at_an_address(cluster):
    result = run("--scheduler", cluster.scheduler_address)
    assert result.exit_code == 0, result.output
    assert result.output == "Client\nFalse\nNone\n"


@pytest.mark.parametrize("name", ["threads", "processes"])
def test_pools_have_a_worker_per_core(name):
    with Scheduler(name).executor() as executor:
        assert isinstance(executor, ThreadPoolExecutor | ProcessPoolExecutor)
        assert executor._max_workers == os.cpu_count()


def test_nothing_is_left(cluster):
    threads = threading.active_count()
    with Scheduler("threads", 2).executor() as executor:
        executor.submit(len, "abc").result()
    assert threading.active_count() == threads
    with Scheduler(cluster.scheduler_address).executor() as client:
        assert isinstance(client, Client)
    assert client.status == "closed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scheduler", "thread"), ("neither threads nor processes", "tcp://host:8786")),
        (("--scheduler", "tcp://a:1", "--jobs", "2"), ("has its own workers", "Leave --jobs out")),
        (("--jobs", "0"), ("0 is not in the range",)),
    ],
)
def test_wrong_options_are_refused(arguments, words):
    result = run(*arguments)
    assert result.exit_code == 2
    assert all(word in result.output for word in words), result.output


def test_a_scheduler_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(clusters, "_CONNECT_SECONDS", 0.2)
    result = run("--scheduler", "tcp://127.0.0.1:1")
    assert result.exit_code == 2
    assert result.output.startswith("Error: no dask scheduler answers at tcp://127.0.0.1:1")
    with pytest.raises(ClusterError), Scheduler("nonsense://x:1").executor():
        pass
    # Nothing runs there afterwards.
    assert active_client(None) is None


def test_an_error_inside_is_not_mistaken_for_a_lost_scheduler(cluster):
    with (
        pytest.raises(FormatError, match="broken"),
        Scheduler(cluster.scheduler_address).executor(),
    ):
        raise FormatError("broken")


@pytest.mark.parametrize(
    ("progress", "as_json", "shown"),
    [(True, False, True), (False, False, False), (True, True, False), (None, True, False)],
)
def test_bars(progress, as_json, shown):
    assert shows_bar(progress, as_json) is shown
