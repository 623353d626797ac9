"""What the tests stand on: the real binary, started as a user would, and processes that are killed at the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "sdk/python/src"))
BINARY = os.environ.get("ONLYONCE_BINARY") or str(ROOT / "target/debug/onlyonce")
EXAMPLES = ROOT / "sdk/python/examples"

PATIENCE = 60.0
"""How long anything may take before it counts as stuck, in seconds."""

# A proxy of the machine is for the outer world, and its settings are none of ours.
for _name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
    os.environ.pop(_name, None)
for _name in ("ONLYONCE_CONTROL", "ONLYONCE_CONTROL_TOKEN", "ONLYONCE_KEYS"):
    os.environ.pop(_name, None)


class Process:
    """A child process that is killed when it is closed, and the lines that it has printed."""

    def __init__(self, command: Sequence[str], **options: Any) -> None:
        self.child: subprocess.Popen[str] = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
        )
        self.lines: List[str] = []
        self._news = threading.Condition()
        self._ended = False
        assert self.child.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.child.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[str]) -> None:
        for line in output:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Waits for a line with `pattern` in it."""

        def found() -> Optional[re.Match[str]]:
            matches = (re.search(pattern, line) for line in self.lines)
            return next((match for match in matches if match), None)

        with self._news:
            self._news.wait_for(lambda: found() or self._ended, PATIENCE)
            match = found()
        if match is None:
            raise AssertionError(f"{self.child.args!r} did not print {pattern!r}: {self.lines}")
        return match

    def finish(self) -> int:
        """Waits for its end; the exit code."""
        code = self.child.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        self._reader.join(PATIENCE)
        assert self.child.stdout is not None
        self.child.stdout.close()


class Sandbox:
    """The pretend paid provider, which counts what it executes."""

    def __init__(self) -> None:
        self._process = Process([BINARY, "sandbox", "--listen", "127.0.0.1:0"])
        self.url = self._process.wait_for(r"sandbox listening on (\S+)")[1]

    def ledger(self) -> List[Dict[str, Any]]:
        """What it executed."""
        entries: List[Dict[str, Any]] = get_json(f"{self.url}/_sandbox/ledger")["entries"]
        return entries

    def close(self) -> None:
        self._process.close()


class Gateway:
    """The gateway under test, with a data folder of its own."""

    def __init__(
        self,
        upstream: str = "http://127.0.0.1:9",
        preset: str = "generic",
        secrets: Optional[Mapping[str, str]] = None,
        **settings: str,
    ) -> None:
        self._environment = {**os.environ, **(secrets or {})}
        self.folder = Path(tempfile.mkdtemp(prefix="onlyonce-sdk-"))
        parts = {"server": "", "store": "", "limits": "", "route": "", "extra": "", **settings}
        self._config = self.folder / "config.toml"
        self._config.write_text(
            f'[server]\nlisten = "127.0.0.1:0"\ncontrol = "127.0.0.1:0"\nworkers = 1\n{parts["server"]}\n'
            f'[store]\nurl = "embedded:{self.folder / "data"}"\n{parts["store"]}\n[limits]\n{parts["limits"]}\n'
            f'[[upstream]]\nname = "up"\nurl = "{upstream}"\npreset = "{preset}"\n'
            f'[[route]]\nupstream = "up"\n{parts["route"]}\n{parts["extra"]}\n'
        )
        self.start()

    def start(self) -> None:
        """Starts it, again after `kill`; on other ports then."""
        self._process = Process([BINARY, "serve", "--config", str(self._config)], env=self._environment)
        self.url = self._process.wait_for(r"gateway listening on (\S+)")[1]
        self.control = self._process.wait_for(r"control listening on (\S+)")[1]

    def kill(self) -> None:
        """`kill -9`."""
        self._process.close()

    def operations(self, key: str) -> List[Dict[str, Any]]:
        """The operations with this key."""
        found: List[Dict[str, Any]] = get_json(f"{self.control}/v1/operations?key={key}")["operations"]
        return found

    def close(self) -> None:
        self._process.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def get_json(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return json.load(answer)


class Line:
    """A line to the gateway that can be cut, held, and led elsewhere. Each connection carries one request.

    The answers of the next requests can be lost, or held until they are let through; while it is cut nothing passes.
    """

    def __init__(self, url: str) -> None:
        self.lead_to(url)
        self.requests = 0
        """How many requests have come."""
        self._lose = 0
        self._cut = False
        self._open = threading.Event()
        self._open.set()
        self._held = threading.Semaphore(0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, url: str) -> None:
        """Leads it to another gateway."""
        parts = urlsplit(url)
        self._target: Tuple[str, int] = (str(parts.hostname), int(parts.port or 80))

    def lose_answers(self, count: int) -> None:
        """The next `count` requests arrive, and their answers do not."""
        self._lose = count

    def hold_answers(self) -> None:
        """Requests arrive, and their answers wait."""
        self._open.clear()

    def wait_for_held(self) -> None:
        """Waits until an answer waits."""
        assert self._held.acquire(timeout=PATIENCE)

    def let_through(self) -> None:
        """Lets held answers through, and mends it where it was cut."""
        self._cut = False
        self._open.set()

    def cut(self) -> None:
        """Nothing passes any more."""
        self._cut = True

    def close(self) -> None:
        self._open.set()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            request = _read_message(connection)
            self.requests += 1
            if self._cut or not request:
                return
            try:
                with socket.create_connection(self._target, PATIENCE) as onward:
                    # One exchange a connection, so that the end of the answer is its end.
                    head, mark, body = request.partition(b"\r\n\r\n")
                    onward.sendall(head + b"\r\nConnection: close" + mark + body)
                    answer = _read_all(onward)
            except OSError:
                return
            if not self._open.is_set():
                self._held.release()
                self._open.wait(PATIENCE)
            if self._lose > 0:
                self._lose -= 1
                return
            connection.sendall(answer)


def _read_message(connection: socket.socket) -> bytes:
    message = b""
    while b"\r\n\r\n" not in message:
        piece = connection.recv(65536)
        if not piece:
            return b""
        message += piece
    head, _, body = message.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    lengths: List[int] = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")]
    while lengths and len(body) < lengths[0]:
        piece = connection.recv(65536)
        if not piece:
            return b""
        message += piece
        body += piece
    return message


def _read_all(connection: socket.socket) -> bytes:
    pieces: List[bytes] = []
    while True:
        piece = connection.recv(65536)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


class GatewayTest(unittest.TestCase):
    """Tests that share a gateway. Each test's keys are its own."""

    gateway: Gateway

    @classmethod
    def setUpClass(cls) -> None:
        cls.gateway = cls.make_gateway()
        cls.addClassCleanup(cls.gateway.close)

    @classmethod
    def make_gateway(cls) -> Gateway:
        return Gateway()

    def line(self) -> Line:
        """A line to the control listener, for this test."""
        line = Line(self.gateway.control)
        self.addCleanup(line.close)
        return line

    def key(self) -> str:
        """A key that no other test has."""
        return f"{self.id().rpartition('.')[2]}-{os.urandom(4).hex()}"

    def folder(self) -> Path:
        """A folder that is gone after the test."""
        path = Path(tempfile.mkdtemp(prefix="onlyonce-sdk-"))
        self.addCleanup(shutil.rmtree, path, True)
        return path


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, kind: str = "application/json") -> None:
    """Answers a request of `serving`."""
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def serving(serve: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """A small HTTP server for the time of a block; its URL. `serve` is given each POST, with its body as `body`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        body = b""

        def do_POST(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            serve(self)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Waits for a condition that only a poll can see; what it gave."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


@contextlib.contextmanager
def running(*command: str, **options: Any) -> Iterator[Process]:
    """A process for the time of a block."""
    process = Process(command, **options)
    try:
        yield process
    finally:
        process.close()


def python(script: object, *arguments: str) -> List[str]:
    """A command that runs a Python script with this very interpreter, and the package of the checkout."""
    return [sys.executable, str(script), *arguments]


def environment(**more: str) -> Dict[str, str]:
    """The environment of a script: it finds the package of the checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "sdk/python/src"), "PYTHONUNBUFFERED": "1", **more}
