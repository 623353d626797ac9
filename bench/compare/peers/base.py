"""What every adapter stands on: where peers are kept, how programs are started and killed."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar, TypeVar

from wire import Address, Request, ask

HERE = Path(__file__).resolve().parent.parent
ROOT = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# Whatever is fetched, built and written. Never committed.
PLACE = TARGET / "compare"

Found = TypeVar("Found")

# How long a program may take until it listens, in seconds.
START = 60.0

# Nobody here is to speak to anybody but this machine.
QUIET = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "DO_NOT_TRACK": "1",
    "RESTATE_DISABLE_TELEMETRY": "1",
    "SCARF_ANALYTICS": "false",
    "no_proxy": "127.0.0.1",
}


class Peer:
    """One of the compared. An adapter fills these in."""

    name: str
    title: str
    version: str
    # What it is to a caller, and every setting that is not a default.
    shape: str
    settings: tuple[str, ...]

    def __init__(self, work_url: str, folder: Path):
        self.work_url = work_url
        self.folder = folder

    def install(self) -> None:
        """Gets what is missing of it."""

    def start(self) -> None:
        raise NotImplementedError

    def stop(self) -> None:
        raise NotImplementedError

    def kill(self) -> None:
        """Kills (signal 9) what runs the action."""
        raise NotImplementedError

    def restart(self) -> None:
        """Starts again what was killed, on what it had kept."""
        raise NotImplementedError

    def request(self, action: str, order: str) -> Request:
        """One caller's request; the key is the name of the action."""
        raise NotImplementedError


def body(action: str, order: str) -> bytes:
    return json.dumps({"action": action, "order": order}).encode()


def headers(action: str) -> dict[str, str]:
    return {"Idempotency-Key": action, "Authorization": "Bearer caller"}


class Program:
    """A process that listens. It ends with the harness at the latest."""

    running: ClassVar[set[Program]] = set()

    def __init__(self, command: Iterable[str | Path], log: Path, env: dict[str, str] | None = None):
        self.command = [str(word) for word in command]
        self.log = log
        self.env = {**os.environ, **QUIET, **(env or {})}
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self.env,
                cwd=log.parent,
                start_new_session=True,
            )
        Program.running.add(self)

    def announced(self, pattern: str) -> Address:
        """Waits until it says where it listens, in the last line that fits."""
        return self._until(lambda: self._said(pattern))

    def listens(self, address: Address) -> None:
        """Waits until somebody takes connections there."""

        def taken() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(address) == 0

        self._until(taken)

    def answers(self, request: Request) -> None:
        """Waits until the answer to this is one of success."""
        self._until(lambda: 200 <= ask(request).status < 300)

    def _said(self, pattern: str) -> Address | None:
        found = re.findall(pattern, self.log.read_text(errors="replace"))
        return ("127.0.0.1", int(found[-1])) if found else None

    def _until(self, condition: Callable[[], Found]) -> Found:
        """What the condition gives once it is something."""
        until = time.monotonic() + START
        while time.monotonic() < until:
            if found := condition():
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"{self.command[0]} did not start: see {self.log}")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, how)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        Program.running.discard(self)
        # A line of the one that ended is not to be taken for one of its successor.
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".before.log"))


@atexit.register
def _kill_all() -> None:
    for program in list(Program.running):
        program.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command: Iterable[str | Path], env: dict[str, str] | None = None) -> None:
    """Runs an installing command; what it says is shown only if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words, env={**os.environ, **QUIET, **(env or {})}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")


def python() -> Path:
    """A Python with the peers that are Python packages."""
    place = PLACE / "venv"
    wanted = (HERE / "requirements.txt").read_text()
    stamp = place / "installed.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        run(["python3", "-m", "venv", "--clear", place])
        run([place / "bin/pip", "install", "--quiet", "-r", HERE / "requirements.txt"])
        stamp.write_text(wanted)
    return place / "bin/python"


def server(name: str) -> Path:
    """One of the servers in `servers/`."""
    target = PLACE / "servers"
    manifest = HERE / "servers/Cargo.toml"
    run(["cargo", "build", "--locked", "--manifest-path", manifest, "--target-dir", target])
    return target / "debug" / name


def redis(folder: Path) -> tuple[Program, str]:
    """An empty Redis, and its URL."""
    if not shutil.which("redis-server"):
        raise RuntimeError("redis-server is missing: install it")
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    program = Program(["redis-server", *options], folder / "redis.log")
    program.listens(("127.0.0.1", port))
    return program, f"redis://127.0.0.1:{port}"


