"""Clusters that a command starts or joins: at an address, or as a small YAML file describes them.

It knows the file and the classes of dask's clusters, and must not know commands or what they run.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, NoReturn

from wkdask.errors import ArgumentError, ClusterError, extra_error

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["ClusterFile", "connected", "read_cluster_file"]

_CONNECT_SECONDS = 30
_LOOK_SECONDS = 0.5
_MAPPINGS = ("options", "scale", "adapt")


@dataclass(frozen=True, slots=True)
class ClusterFile:
    """What a file says about a cluster.

    Examples
    --------
    >>> ClusterFile("a.yaml", "tcp://10.0.0.1:8786", {"cores": 4})
    Traceback (most recent call last):
    wkdask.errors.ArgumentError: a.yaml: the cluster tcp://10.0.0.1:8786 runs already, and has its \
own workers. Leave options, scale and adapt out.
    """

    path: str
    """The file."""
    cluster: str
    """A class of clusters with its module, the address of a scheduler, or a scheduler file."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class."""
    scale: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its method `scale`; none if it is not called."""
    adapt: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its method `adapt`; none if it is not called."""

    def __post_init__(self) -> None:
        if not isinstance(self.cluster, str) or not self.cluster:
            self._refuse(
                f"cluster is {self.cluster!r}, but must name a class such as "
                "dask_jobqueue.SLURMCluster, the address of a scheduler such as tcp://host:8786, "
                "or a scheduler file that ends in .json."
            )
        for name in _MAPPINGS:
            value = getattr(self, name)
            if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
                self._refuse(f"{name} is {value!r}, but must be names with values.")
        walltime = self.options.get("walltime", "")
        if not isinstance(walltime, str):
            self._refuse(
                f"walltime is {walltime!r}, but must be text, as YAML takes 10:00:00 for a number. "
                'Put it in quotes: walltime: "10:00:00".'
            )
        if self.is_running and (self.options or self.scale or self.adapt):
            self._refuse(
                f"the cluster {self.cluster} runs already, and has its own workers. Leave options, "
                "scale and adapt out."
            )
        if self.scale and self.adapt:
            self._refuse("a cluster has either scale or adapt. Leave one of them out.")

    @property
    def is_running(self) -> bool:
        """Whether the cluster is one that others have started."""
        return ":" in self.cluster or self.cluster.endswith(".json")

    @contextlib.contextmanager
    def client(self, tell: Callable[[str], None]) -> Iterator[Client]:
        """Start or join the cluster, and end what was started afterwards.

        Parameters
        ----------
        tell
            Called with a line of text if there is no worker yet: the queue of a batch system may
            be long.

        Raises
        ------
        ArgumentError
            If there is no such class, or it does not take what the file says.
        ClusterError
            If no scheduler answers, or a job can't be submitted.
        MissingExtraError
            If the class is one of dask-jobqueue, which is not installed.
        """
        if self.is_running:
            with connected(self.cluster) as client:
                yield client
            return
        from distributed import Client

        kind = self._kind()
        self._check_names(kind)
        with self._started(kind) as cluster, Client(cluster, set_as_default=False) as client:
            with _unlogged():
                self._scale(cluster)
                _wait_for_worker(cluster, client, tell)
            if self.adapt:
                cluster.adapt(**self.adapt)
            yield client

    def _kind(self) -> Any:
        """Return the class."""
        from distributed.deploy.cluster import Cluster

        try:
            kind = resolve_name(self.cluster)
        except ImportError as error:
            if self.cluster.split(".")[0] == "dask_jobqueue" == error.name:
                raise extra_error("dask-jobqueue", "slurm") from None
            self._refuse_class(f"can't be imported ({error})")
        except (AttributeError, ValueError) as error:
            self._refuse_class(f"can't be imported ({error})")
        if not (isinstance(kind, type) and issubclass(kind, Cluster)):
            self._refuse_class("is no class of clusters")
        return kind

    def _check_names(self, kind: type) -> None:
        """Raise unless the class knows all that is said about workers; `adapt` would ignore it."""
        from distributed.deploy.adaptive import Adaptive

        for method, others in (("scale", ()), ("adapt", _parameters(Adaptive, "__init__"))):
            allowed = {*_parameters(kind, method), *others} - {"self", "cluster", "Adaptive"}
            if unknown := set(getattr(self, method)) - allowed:
                self._refuse(
                    f"{method} of {self.cluster} does not know {', '.join(sorted(unknown))}, but "
                    f"{', '.join(sorted(allowed))}."
                )

    @contextlib.contextmanager
    def _started(self, kind: Any) -> Iterator[Any]:
        """Provide a cluster of a class, and close it."""
        try:
            cluster = kind(**self.options)
        except (AttributeError, OSError, RuntimeError, TypeError, ValueError) as error:
            self._refuse(f"{self.cluster} does not take these options: {_in_a_line(error)}")
        with cluster:
            yield cluster

    def _scale(self, cluster: Any) -> None:
        """Give a cluster the workers to begin with, if it does not have them by itself."""
        if self.scale:
            cluster.scale(**self.scale)
        elif self.adapt and not cluster.plan:
            # Tasks need one to begin, and memory is checked by what workers have.
            cluster.scale(1)
        elif not cluster.plan:
            self._refuse(
                f"{self.cluster} begins without workers. Add scale, such as {{n: 4}}, or adapt, "
                "such as {minimum: 1, maximum: 20}."
            )

    def _refuse_class(self, why: str) -> NoReturn:
        self._refuse(
            f"cluster is {self.cluster}, which {why}. Name a class with its module, such as "
            "dask_jobqueue.SLURMCluster."
        )

    def _refuse(self, why: str) -> NoReturn:
        raise ArgumentError(f"{self.path}: {why}")


def read_cluster_file(path: str) -> ClusterFile:
    """Read a YAML file that describes a cluster.

    Raises
    ------
    ArgumentError
        If it can't be read, or says something that can't be.
    """
    import yaml

    try:
        said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"{path} can't be read: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ArgumentError(f"{path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(said, dict) or "cluster" not in said:
        raise ArgumentError(
            f"{path} must say which cluster, in lines such as cluster: distributed.LocalCluster."
        )
    if unknown := said.keys() - {"cluster", *_MAPPINGS}:
        names = ", ".join(sorted(map(str, unknown)))
        raise ArgumentError(f"{path} has {names}, but may have cluster, {', '.join(_MAPPINGS)}.")
    return ClusterFile(path, **{name: value for name, value in said.items() if value is not None})


@contextlib.contextmanager
def connected(place: str) -> Iterator[Client]:
    """Provide a client of a scheduler, by its address or by its file.

    Raises
    ------
    ClusterError
        If none answers.
    """
    from distributed import Client

    address = _address_in(place) if place.endswith(".json") else place
    try:
        # One that does not get through would stay dask's default.
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"no dask scheduler answers at {address} within {_CONNECT_SECONDS} s ({error}). Start "
            "one with `dask scheduler`, or use --scheduler threads."
        ) from None
    with client:
        yield client


def _address_in(file: str) -> str:
    try:
        return str(json.loads(Path(file).read_text(encoding="utf-8"))["address"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"the scheduler file {file} can't be read ({error}). `dask scheduler --scheduler-file "
            f"{file}` makes one."
        ) from None


def _parameters(kind: type, method: str) -> set[str]:
    """Return the names that a method takes, also those that it hands on to the classes above."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        name
        for base in kind.__mro__
        if method in vars(base)
        for name, parameter in inspect.signature(vars(base)[method]).parameters.items()
        if parameter.kind not in kinds
    }


def _in_a_line(error: BaseException) -> str:
    """Return what an error comes from; clusters only say that they failed to start."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keep the event loop from logging tracebacks of errors that are raised here anyway."""
    logger = logging.getLogger("tornado.application")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _wait_for_worker(cluster: Any, client: Client, tell: Callable[[str], None]) -> None:
    is_told = False
    while not client.nthreads():
        cluster.sync(_submit, cluster)
        if not is_told:
            tell(f"Waiting for the first worker of {type(cluster).__name__}.")
            is_told = True
        time.sleep(_LOOK_SECONDS)


async def _submit(cluster: Any) -> None:
    """Raise if workers could not be started; the cluster itself would only log it."""
    from distributed.core import Status

    workers = list(getattr(cluster, "workers", {}).values())
    errors = await asyncio.gather(*workers, return_exceptions=True)
    failed = {
        worker: error
        for worker, error in zip(workers, errors, strict=True)
        if isinstance(error, Exception)
    }
    for worker in failed:
        # As the cluster expects it of those that are left.
        worker.status = Status.failed
    for error in failed.values():
        name = type(cluster).__name__
        raise ClusterError(f"a worker of {name} can't be started: {_in_a_line(error)}")
