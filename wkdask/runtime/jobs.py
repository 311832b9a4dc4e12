"""Jobs of a batch system that have ended, submitted again while a run goes on.

A job ends at its walltime, or with its node. dask-jobqueue submits another one only for a cluster
that adapts and whose jobs have one process each. It knows such clusters and their jobs, and must
not know tasks.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from asyncio import run_coroutine_threadsafe
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import dask.config
from dask.utils import parse_timedelta

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Jobs"]


class Jobs:
    """The jobs of the cluster that a client belongs to; of other clusters there are none.

    Parameters
    ----------
    client
        The cluster. Only one that dask-jobqueue made in this process has jobs.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._cluster: Any = client.cluster if _has_jobs(client.cluster) else None
        # The cluster asserts that jobs which it has forgotten are gone: no reference may keep them.
        self._last_seen: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        self._renewal: Future[None] | None = None

    def look(self) -> None:
        """Let jobs be submitted again whose workers have gone, or that could not be submitted.

        It does not wait. Jobs that the cluster no longer wants, because it was scaled down, are
        left alone, as are those that wait in a queue.
        """
        if self._cluster is None or not self._is_over():
            return
        gone = self._gone(time.monotonic())
        if gone or set(self._cluster.worker_spec) - set(self._cluster.workers):
            loop = self._cluster.loop.asyncio_loop
            self._renewal = run_coroutine_threadsafe(_renew(self._cluster, gone), loop)

    def _is_over(self) -> bool:
        """Return whether jobs are not being submitted now; warn if that has failed."""
        if self._renewal is None:
            return True
        if not self._renewal.done():
            return False
        error, self._renewal = self._renewal.exception(), None
        if error is not None:
            text = " ".join(str(error).split())
            warnings.warn(
                f"a job could not be submitted, and will be tried again: {text}",
                RuntimeWarning,
                stacklevel=2,
            )
        return True

    def _gone(self, now: float) -> dict[str, Any]:
        """Return jobs whose workers have been away for some time, or that were not submitted."""
        patience = parse_timedelta(dask.config.get("distributed.deploy.lost-worker-timeout"))
        present = self._present()
        gone = {}
        for name, job in list(self._cluster.workers.items()):
            if name in present:
                self._last_seen[job] = now
            elif now - self._last_seen.get(job, now) >= patience or _has_failed(job):
                gone[name] = job
        return gone

    def _present(self) -> set[str]:
        """Return the names of jobs that have workers; these add a number to it if they are many."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        names = {str(worker["name"]) for worker in workers}
        return names | {name.rpartition("-")[0] for name in names}


def _has_jobs(cluster: object) -> bool:
    """Tell whether dask-jobqueue made a cluster; where it was not imported, it did not."""
    core = sys.modules.get("dask_jobqueue.core")
    return core is not None and isinstance(cluster, core.JobQueueCluster)


def _has_failed(job: Any) -> bool:
    """Return whether a job of the cluster was not submitted."""
    return job.status.name in ("created", "failed")


async def _renew(cluster: Any, gone: dict[str, Any]) -> None:
    """Forget jobs, and submit what the cluster lacks."""
    from distributed.core import Status

    for name, job in gone.items():
        # By now the cluster may have done so itself.
        if cluster.workers.get(name) is job:
            del cluster.workers[name]
            job.status = Status.closed
            # Most often it is over, and there is nothing to cancel.
            with contextlib.suppress(Exception):
                await job.close()
    try:
        if cluster.status == Status.running:
            await cluster
    finally:
        for job in cluster.workers.values():
            if _has_failed(job):
                # As the cluster expects it of one that is left.
                job.status = Status.failed
