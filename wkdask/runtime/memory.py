"""Whether the chunks of a run fit into the memory of what runs them; arithmetic before the work.

It knows executors, their threads and their limits, and nothing of what a task does: its caller says
how many bytes a task needs.
"""

from __future__ import annotations

from collections.abc import Callable

from wkdask.errors import MemoryLimitError
from wkdask.geometry import Vec3
from wkdask.runtime.executors import ExecutorLike, Host, hosts_of

__all__ = ["TASK_BYTES", "auto_size", "check_memory"]

TASK_BYTES = 2**26
"""What the file engine takes for one task, beside the voxels that are read or written at once:
a piece of 8 MiB, the compressed blocks of a batch, and the tables of LZ4."""

# dask pauses a worker at this share of its limit.
_SHARE = 0.8


def check_memory(task_bytes: int, chunk_size: Vec3, tasks: int, executor: ExecutorLike) -> None:
    """Raise unless as many tasks as run at once fit into memory.

    Parameters
    ----------
    task_bytes
        What one task needs at its peak.
    chunk_size
        Voxels per axis of its chunk, for the text of the error.
    tasks
        How many there are; fewer than threads leave some of these idle.
    executor
        What runs them.
    """
    for host in hosts_of(executor):
        threads = min(host.threads, tasks)
        if host.limit_bytes and task_bytes * threads > host.limit_bytes * _SHARE:
            fitting = int(host.limit_bytes * _SHARE) // task_bytes
            fewer = f", or {fitting} thread(s) per worker" if fitting else ""
            raise MemoryLimitError(
                f"a chunk of {chunk_size} needs about {_gib(task_bytes)}, and {host.name} runs "
                f"{threads} at once, but has {_gib(host.limit_bytes)} of which it may fill "
                f'{_SHARE:.0%}. Use smaller chunks (chunk_size="auto" finds the largest that fit)'
                f"{fewer}, or pass check_memory=False if your function takes less."
            )


def auto_size(
    bytes_of: Callable[[Vec3], int],
    chunks_of: Callable[[Vec3], int],
    smallest: Vec3,
    executor: ExecutorLike,
) -> Vec3:
    """Return the largest size of a chunk that fits, `smallest` times a power of two.

    It leaves a chunk for every thread, where there are as many of the smallest size.

    Parameters
    ----------
    bytes_of
        What a task with chunks of a size needs.
    chunks_of
        How many chunks there are of a size.
    smallest
        The size that is taken where nothing larger fits.
    executor
        What runs the tasks.
    """
    hosts = list(hosts_of(executor))
    threads = sum(host.threads for host in hosts)
    limits = [_task_bytes(host) for host in hosts if host.limit_bytes]
    size = smallest
    # A cluster that has no workers yet tells nothing.
    while hosts and threads <= chunks_of(double := _doubled(size)) < chunks_of(size):
        if limits and bytes_of(double) > min(limits):
            break
        size = double
    return size


def _task_bytes(host: Host) -> int:
    """Return how much each task of a host may take."""
    return int(host.limit_bytes * _SHARE) // max(1, host.threads)


def _doubled(size: Vec3) -> Vec3:
    x, y, z = size
    return 2 * x, 2 * y, 2 * z


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
