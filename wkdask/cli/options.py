"""What several commands share: where they run, what they print, how they fail.

It knows click and executors, and none of the commands. Heavy imports wait until a command runs.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from wkdask.cli.clusters import ClusterFile, connected, read_cluster_file
from wkdask.errors import ArgumentError, WkdaskError

if TYPE_CHECKING:
    from wkdask.runtime.executors import ExecutorLike

__all__ = [
    "Scheduler",
    "errors_as_text",
    "json_option",
    "print_json",
    "progress_option",
    "scheduler_options",
    "shows_bar",
]

_Command = Callable[..., Any]

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
"""Gives a command the argument `as_json`."""

progress_option = click.option(
    "--progress/--no-progress", default=None, help="Show a bar.  [default: in a terminal]"
)
"""Gives a command the argument `progress`, for `shows_bar`."""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Where a command runs, as its options say."""

    name: str | None = None
    """`"threads"`, `"processes"`, the address of a cluster, or None for what dask is set to."""
    jobs: int | None = None
    """How many threads or processes; None is one per core."""
    cluster: ClusterFile | None = None
    """A cluster that a file describes, in place of both."""

    @contextmanager
    def executor(self) -> Iterator[ExecutorLike]:
        """Provide what takes the tasks, for the `executor` of a function; end it afterwards."""
        if self.cluster is not None:
            with ExitStack() as stack:
                try:
                    client = stack.enter_context(self.cluster.client(_tell))
                except ArgumentError as error:
                    raise click.UsageError(str(error)) from None
                yield client
        elif self.name is None and self.jobs is None:
            yield None
        elif self.name == "processes":
            import multiprocessing

            # A fork of a process with threads may hang.
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(self._workers(), mp_context=spawn) as processes:
                yield processes
        elif self.name in (None, "threads"):
            with ThreadPoolExecutor(self._workers(), thread_name_prefix="wkdask") as threads:
                yield threads
        else:
            with connected(str(self.name)) as client:
                yield client

    def _workers(self) -> int:
        from wkdask.runtime.executors import workers_of

        return self.jobs or workers_of(None)


def scheduler_options(command: _Command) -> _Command:
    """Give a command `--scheduler`, `--jobs` and `--cluster`, as one argument `scheduler`.

    Examples
    --------
    >>> import click
    >>> @click.command()
    ... @scheduler_options
    ... def count(scheduler):
    ...     with scheduler.executor() as executor:
    ...         print(executor.submit(len, "abc").result())
    >>> count.main(["--scheduler", "threads", "--jobs", "2"], standalone_mode=False)
    3
    """

    @click.option(
        "--scheduler",
        metavar="ADDRESS|threads|processes",
        callback=_checked_scheduler,
        help="Where tasks run: a dask scheduler such as tcp://host:8786, or here.  "
        "[default: threads]",
    )
    @click.option(
        "--jobs",
        type=click.IntRange(min=1),
        help="How many threads or processes run here.  [default: one per core]",
    )
    @click.option(
        "--cluster",
        metavar="FILE",
        callback=_checked_cluster,
        help="A YAML file that says which dask cluster to start, such as one on SLURM, in place of "
        "--scheduler.",
    )
    @wraps(command)
    def with_scheduler(
        *args: Any,
        scheduler: str | None,
        jobs: int | None,
        cluster: ClusterFile | None,
        **kwargs: Any,
    ) -> Any:
        if cluster is not None and (scheduler, jobs) != (None, None):
            raise click.UsageError(
                f"--cluster {cluster.path} says where tasks run. Leave --scheduler and --jobs out."
            )
        if jobs is not None and scheduler not in (None, "threads", "processes"):
            raise click.UsageError(
                f"--jobs counts threads or processes here, but --scheduler is {scheduler}, which "
                "has its own workers. Leave --jobs out."
            )
        return command(*args, scheduler=Scheduler(scheduler, jobs, cluster), **kwargs)

    return with_scheduler


def print_json(value: Any) -> None:
    """Print a value as JSON, which was asked for, so that `--quiet` does not keep it back."""
    context = click.get_current_context(silent=True)
    click.echo(json.dumps(value, indent=2), file=context.find_root().obj if context else None)


def shows_bar(progress: bool | None, as_json: bool) -> bool:
    """Return whether a command shows a bar; never with JSON, which is printed to the same place."""
    if as_json or _is_given("quiet"):
        return False
    return sys.stderr.isatty() if progress is None else progress


def _is_given(flag: str) -> bool:
    """Return whether a flag of `wkdask` itself was given."""
    context = click.get_current_context(silent=True)
    return bool(context and context.find_root().params.get(flag))


@contextmanager
def errors_as_text(exit_code: int = 1) -> Iterator[None]:
    """Show our errors as one line instead of a traceback, and end with an exit code."""
    try:
        yield
    except (WkdaskError, OSError) as error:
        if _is_given("verbose"):
            traceback.print_exc()
        shown = click.ClickException(str(error))
        shown.exit_code = exit_code
        raise shown from None


def _checked_scheduler(_context: Any, _option: Any, value: str | None) -> str | None:
    if value is None or value in ("threads", "processes") or ":" in value:
        return value
    raise click.BadParameter(
        f"{value!r} is neither threads nor processes, nor an address such as tcp://host:8786."
    )


def _checked_cluster(_context: Any, _option: Any, value: str | None) -> ClusterFile | None:
    try:
        return None if value is None else read_cluster_file(value)
    except ArgumentError as error:
        raise click.BadParameter(str(error)) from None


def _tell(text: str) -> None:
    if not _is_given("quiet"):
        click.echo(text, err=True)
