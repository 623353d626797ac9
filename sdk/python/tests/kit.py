"""What the tests stand on: the real binary, started as a user would, and processes that are killed at the end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.request
from pathlib import Path
from typing import Any, Dict, IO, Iterator, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[3]
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

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """Waits for a line with `pattern` in it."""

        def found() -> Optional["re.Match[str]"]:
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

    def __init__(self, upstream: str = "http://127.0.0.1:9", preset: str = "generic", **settings: str) -> None:
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
        self._process = Process([BINARY, "serve", "--config", str(self._config)])
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

    def folder(self) -> Path:
        """A folder that is gone after the test."""
        path = Path(tempfile.mkdtemp(prefix="onlyonce-sdk-"))
        self.addCleanup(shutil.rmtree, path, True)
        return path


@contextlib.contextmanager
def running(*command: str, **options: Any) -> Iterator[Process]:
    """A process for the time of a block."""
    process = Process(command, **options)
    try:
        yield process
    finally:
        process.close()


def python(script: Path, *arguments: str) -> List[str]:
    """A command that runs a Python script with this very interpreter, and the package of the checkout."""
    return [sys.executable, str(script), *arguments]


def environment(**more: str) -> Dict[str, str]:
    """The environment of a script: it finds the package of the checkout."""
    return {**os.environ, "PYTHONPATH": str(ROOT / "sdk/python/src"), "PYTHONUNBUFFERED": "1", **more}
