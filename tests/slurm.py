"""A small SLURM of this machine only: a controller, and daemons of nodes, for tests."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from servers import free_port, program

__all__ = ["NODES", "Slurm", "run_slurm", "wait_until", "why_not"]

NODES = ("n1", "n2", "n3")
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue")

_CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
# Time limits are looked at every half a minute, and then nobody is spared.
OverTimeLimit=0
KillWait=1
MinJobAge=600
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdSpoolDir={root}/spool-%n
SlurmdPidFile={root}/slurmd-%n.pid
SlurmdLogFile={root}/slurmd-%n.log
{nodes}
PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str | None:
    """Return why there can be no SLURM here, or None."""
    if os.getuid() != 0:
        return "a SLURM of one's own needs root"
    missing = [name for name in _PROGRAMS if program(name) is None]
    return f"not installed: {', '.join(missing)} (slurm-wlm, munge)" if missing else None


@dataclass(frozen=True)
class Slurm:
    """A SLURM that runs."""

    environment: Mapping[str, str]
    """What its commands, and processes that call them, must have in their environment."""

    def call(self, *command: str) -> str:
        """Run one of its commands, and return what it prints."""
        return subprocess.run(
            command, env=os.environ | dict(self.environment), check=True, capture_output=True,
            text=True, timeout=60,
        ).stdout  # fmt: skip

    def jobs(self, *states: str) -> list[str]:
        """Return the ids of the jobs in some states, such as `"RUNNING"`; all that are not over."""
        chosen = ("--states", ",".join(states)) if states else ()
        return self.call("squeue", "--noheader", "--format=%A", *chosen).split()

    def node_of(self, job: str) -> str:
        """Return the node on which a job runs or ran."""
        return self.call(
            "squeue", "--noheader", "--states=all", "--format=%N", f"--jobs={job}"
        ).strip()

    def state_of(self, node: str) -> str:
        """Return the state of a node, such as `"idle"` or `"drained"`."""
        return self.call("sinfo", "--noheader", "--format=%T", f"--nodes={node}").strip()

    def update(self, node: str, state: str) -> None:
        """Set the state of a node, such as `"DRAIN"`."""
        self.call("scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=test")

    def cancel(self, *jobs: str) -> None:
        """End jobs, and wait until they are over."""
        if jobs:
            self.call("scancel", *jobs)
        wait_until(lambda: not set(jobs) & set(self.jobs()), f"jobs {jobs} to be over")


@contextlib.contextmanager
def run_slurm(root: Path) -> Iterator[Slurm]:
    """Run a SLURM with three nodes, whose files lie in a directory."""
    for name in ("munge", "state"):
        (root / name).mkdir(parents=True)
    # munged refuses directories to which others may write, but for sockets all must get there.
    (root / "munge").chmod(0o755)
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs=2 "
        "RealMemory=4000"
        for name in NODES
    )
    file = root / "slurm.conf"
    file.write_text(_CONFIGURATION.format(root=root, host=host, port=free_port(), nodes=nodes))
    (root / "cgroup.conf").write_text("CgroupAutomount=no\n")
    slurm = Slurm({"SLURM_CONF": str(file)})
    munge = [
        "munged", "--foreground", "--force", f"--socket={root}/munge/socket", f"--key-file={key}",
        f"--log-file={root}/munge/log", f"--pid-file={root}/munge/pid",
        f"--seed-file={root}/munge/seed",
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        stack.enter_context(_daemon(munge, root, slurm))
        wait_until((root / "munge" / "socket").exists, "munged")
        stack.enter_context(_daemon(["slurmctld", "-D"], root, slurm))
        for name in NODES:
            stack.enter_context(_daemon(["slurmd", "-D", "-N", name], root, slurm))
        wait_until(lambda: _are_idle(slurm), "the nodes to be idle")
        # Workers are children of the nodes' daemons: they must be gone before these are.
        stack.callback(lambda: slurm.cancel(*slurm.jobs()))
        yield slurm


def _are_idle(slurm: Slurm) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        return {slurm.state_of(node) for node in NODES} == {"idle"}
    return False


@contextlib.contextmanager
def _daemon(command: list[str], root: Path, slurm: Slurm) -> Iterator[None]:
    path = program(command[0]) or command[0]
    with (root / f"{command[0]}-{command[-1]}.out".replace("/", "-")).open("wb") as output:
        process = subprocess.Popen(
            [path, *command[1:]], stdout=output, stderr=output, cwd=root,
            env=os.environ | dict(slurm.environment), start_new_session=True,
        )  # fmt: skip
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_until(ready: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Return when something is so; it is asked again and again."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.1)
