"""Servers of tests: nginx, one that lies, and an S3 store; all of this machine only."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

__all__ = [
    "QUICK",
    "S3",
    "FaultyServer",
    "Nginx",
    "mounted_twice",
    "program",
    "run_rclone",
    "run_s3",
]

QUICK: dict[str, Any] = {
    "retry_config": {
        "max_retries": 2,
        "retry_timeout": timedelta(seconds=10),
        "backoff": {"init_backoff": timedelta(milliseconds=20), "base": 2},
    }
}
"""Options that give up soon."""

_NGINX = """
{user} worker_processes 1; daemon off; pid {root}/pid; error_log {root}/errors;
events {{ worker_connections 1024; }}
http {{
    log_format ranges '$request_method $uri $status $body_bytes_sent';
    access_log {root}/requests ranges;
    client_body_temp_path {root}/1; proxy_temp_path {root}/2; fastcgi_temp_path {root}/3;
    uwsgi_temp_path {root}/4; scgi_temp_path {root}/5;
    server {{
        listen 127.0.0.1:{port}; root {root}/files; keepalive_requests 100000;
        location /private/ {{ return 403; }}
        location /down/ {{ return 503; }}
    }}
}}
"""


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(port: int, seconds: float = 60) -> None:
    """Return when somebody listens at a port."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
        else:
            return


class Nginx:
    """The web server nginx, with the files of a directory."""

    def __init__(self, root: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.files = root / "files"
        self.files.mkdir(parents=True)
        self._log = root / "requests"
        # As root it would read by the rights of another user.
        user = "user root;" if os.getuid() == 0 else ""
        (root / "conf").write_text(_NGINX.format(root=root, port=self.port, user=user))
        self._command = [program("nginx") or "nginx", "-p", str(root), "-c", str(root / "conf")]
        self.start()

    def start(self) -> None:
        """Start the server, again if it was killed."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        wait_for(self.port)

    def kill(self) -> None:
        """Kill the server and its processes without a warning."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()

    @contextlib.contextmanager
    def requests(self) -> Iterator[list[tuple[str, str, int, int]]]:
        """Yield a list that has, after the block, method, path, status and bytes of requests."""
        # Requests are logged a moment after they were answered.
        time.sleep(0.1)
        start = self._log.stat().st_size if self._log.exists() else 0
        found: list[tuple[str, str, int, int]] = []
        yield found
        time.sleep(0.1)
        with self._log.open() as log:
            log.seek(start)
            for line in log:
                method, path, status, count = line.split(" ")
                found.append((method, path, int(status), int(count)))


def program(name: str) -> str | None:
    """Return where a program is, also one that a package has brought into the environment."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"]
    return shutil.which(name, path=os.pathsep.join(places))


Fault = Callable[["_Handler", bytes, int], bool]
"""Answers a request by itself and returns True, or returns False."""


@dataclass
class FaultyServer:
    """A web server that serves a directory, and answers wrongly when it is told to."""

    root: Path
    delay: float = 0.0
    """Seconds before each answer."""
    fault: Fault | None = None
    """What is asked before each answer with bytes."""
    count: int = 0
    """Answers so far."""
    most: int = 0
    """Requests that were answered at the same time, at most."""
    busy: int = 0
    lock: Any = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Yield the address."""
        handler = type("Handler", (_Handler,), {"owner": self})
        with _Server(("127.0.0.1", 0), handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                server.shutdown()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    owner: FaultyServer
    e_tag = '"none"'

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        owner = self.owner
        with owner.lock:
            owner.count += 1
            owner.busy += 1
            owner.most = max(owner.most, owner.busy)
            number = owner.count
        try:
            time.sleep(owner.delay)
            self._answer(number)
        finally:
            with owner.lock:
                owner.busy -= 1

    def _answer(self, number: int) -> None:
        path = self.owner.root / self.path.lstrip("/")
        if not path.is_file():
            self.reply(404, b"no such file", {})
            return
        status = path.stat()
        self.e_tag = f'"{status.st_mtime_ns}-{status.st_size}"'
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) if status.st_size else b""
        if self.command == "GET" and self.owner.fault and self.owner.fault(self, data, number):
            return
        self.reply(*self.ranged(data))

    def ranged(self, data: bytes) -> tuple[int, bytes, dict[str, str]]:
        """Return status, bytes and headers of the right answer."""
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if not asked or not data:
            return 200, data, {}
        first, last = asked.groups()
        start = int(first) if first else max(0, len(data) - int(last))
        if start >= len(data):
            return 416, b"too far", {}
        stop = min(int(last) + 1, len(data)) if first and last else len(data)
        return 206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

    def reply(
        self, status: int, data: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        """Send an answer, which may announce another length."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.send_header("Last-Modified", "Fri, 27 Nov 2026 06:00:00 GMT")
        self.send_header("ETag", self.e_tag)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)
        if length is not None:
            self.close_connection = True


@dataclass(frozen=True)
class S3:
    """An S3 store with one bucket."""

    url: str
    """`s3://bucket`."""
    options: dict[str, Any]
    """The `storage_options` for it."""


@contextlib.contextmanager
def run_s3(folder: Path) -> Iterator[S3 | None]:
    """Run SeaweedFS with a bucket; yield None where it does not come up."""
    ports = {name: free_port() for name in ("s3", "master", "volume", "filer")}
    arguments = [f"-{name}.port={port}" for name, port in ports.items()]
    arguments += [f"-{name}.port.grpc={free_port()}" for name in ports]
    # What is of no use here has fixed ports; telemetry leaves this machine.
    arguments += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program("weed") or "weed", "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1", "-volume.max=5", "-master.volumeSizeLimitMB=100", *arguments,
            ],
            stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
    try:
        options = {
            "endpoint": f"http://127.0.0.1:{ports['s3']}", "region": "us-east-1",
            "access_key_id": "someone", "secret_access_key": "a-secret-that-nobody-sees",
        }  # fmt: skip
        yield S3("s3://bucket1", options) if _has_bucket(options["endpoint"]) else None
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def run_rclone(folder: Path) -> Iterator[S3]:
    """Run the S3 store of rclone, which overwrites whatever a precondition says."""
    (folder / "bucket1").mkdir()
    port = free_port()
    process = subprocess.Popen(
        [
            program("rclone") or "rclone", "serve", "s3", "--addr", f"127.0.0.1:{port}",
            "--auth-key", "someone,a-secret-of-rclone", str(folder),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
    )  # fmt: skip
    try:
        wait_for(port)
        options = {
            "endpoint": f"http://127.0.0.1:{port}", "region": "us-east-1",
            "access_key_id": "someone", "secret_access_key": "a-secret-of-rclone",
        }  # fmt: skip
        yield S3("s3://bucket1", options)
    finally:
        process.kill()
        process.wait()


def _has_bucket(endpoint: str) -> bool:
    """Make a bucket, as soon as there is space for its objects."""
    import urllib.request

    end = time.monotonic() + 90
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            for path, data in (("bucket1", None), ("bucket1/first", b"x")):
                request = urllib.request.Request(f"{endpoint}/{path}", data, method="PUT")
                urllib.request.urlopen(request, timeout=10).close()
            return True
        time.sleep(0.3)
    return False


_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")


@contextlib.contextmanager
def mounted_twice(folder: Path, seconds: int = 3) -> Iterator[list[Path] | None]:
    """Mount a directory at two places, as two machines would; None where that can't be done.

    The file system is sshfs, without ssh. Each mount keeps what it knows of files for some seconds,
    as NFS does, and a lock is seen within its mount only.
    """
    server = next((each for each in _SFTP_SERVERS if Path(each).exists()), None)
    if program("sshfs") is None or server is None or not os.access("/dev/fuse", os.W_OK):
        yield None
        return
    command = folder / "server"
    command.write_text(f"#!/bin/sh\nexec {server}\n")
    command.chmod(0o755)
    shared = folder / "shared"
    shared.mkdir()
    places = [folder / "one", folder / "other"]
    with contextlib.ExitStack() as stack:
        for place in places:
            place.mkdir()
            options = ["-o", f"ssh_command={command},dcache_timeout={seconds}"]
            done = subprocess.run(["sshfs", f"x:{shared}", place, *options], check=False)
            if done.returncode:
                yield None
                return
            stack.callback(subprocess.run, ["fusermount3", "-u", "-z", place], check=False)
        yield [shared, *places]
