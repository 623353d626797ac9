"""Throw-away servers of Redis and PostgreSQL, on free ports, with their data in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Dict

import kit


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Redis:
    """A `redis-server` without persistence."""

    def __init__(self) -> None:
        port = free_port()
        words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self._process = kit.Process(["redis-server", *words], cwd=tempfile.gettempdir())
        self.url = f"redis://127.0.0.1:{port}"
        self._process.wait_for("Ready to accept connections")

    def close(self) -> None:
        self._process.close()


class Postgres:
    """A PostgreSQL server. It refuses to be run by root, and is run by ``postgres`` then."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="onlyonce-sdk-postgres-"))
        self._as: Dict[str, Any] = {}
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self._folder, user.pw_uid, user.pw_gid)
        data = str(self._folder / "data")
        command = [_program("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-N", "-E", "UTF8"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **self._as)
        port = free_port()
        words = ["-D", data, "-p", str(port), "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        self._process = kit.Process([_program("postgres"), *words], cwd="/", **self._as)
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self._process.wait_for("database system is ready to accept connections")

    def close(self) -> None:
        # Fast and for all of its processes, which a kill of the first one alone would leave behind.
        self._process.child.send_signal(2)
        self._process.finish()
        self._process.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else name
