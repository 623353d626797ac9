"""Onlyonce: the gateway before the work, and the layer before a handler that forwards to it."""

from __future__ import annotations

import os
from pathlib import Path

from wire import Request

from .base import ROOT, TARGET, Peer, Program, body, headers, run

# The variable with a program that is built already.
PROGRAM = "ONLYONCE_COMPARED_PROGRAM"

CONFIG = """[server]
listen = "127.0.0.1:0"
control = "127.0.0.1:0"

[store]
url = "embedded:{data}"

[[upstream]]
name = "work"
url = "{origin}"

[[route]]
path_prefix = "/"
upstream = "work"
"""


class Gateway(Peer):
    name = "onlyonce-gateway"
    title = "Onlyonce, gateway"
    version = "this checkout"
    shape = "a reverse proxy, embedded store"
    settings = ()

    package = "onlyonce-gateway"
    binary = "onlyonce"

    def install(self) -> None:
        # A test names the program that it tests.
        named = os.environ.get(PROGRAM)
        self.program = Path(named) if named else TARGET / "debug" / self.binary
        if not named:
            run(["cargo", "build", "--manifest-path", ROOT / "Cargo.toml", "-p", self.package])

    def start(self) -> None:
        origin = self.work_url.removesuffix("/work")
        config = CONFIG.format(data=self.folder / "data", origin=origin)
        (self.folder / "onlyonce.toml").write_text(config)
        self.restart()

    def restart(self) -> None:
        command = [self.program, "serve", "--config", self.folder / "onlyonce.toml"]
        self.process = Program(command, self.folder / f"{self.name}.log")
        self.address = self.process.announced(r"gateway listening on http://127\.0\.0\.1:(\d+)")

    def stop(self) -> None:
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def request(self, action: str, order: str) -> Request:
        return Request(self.address, "/work", headers(action), body(action, order))


class Layer(Gateway):
    name = "onlyonce-layer"
    title = "Onlyonce, layer"
    shape = "a tower layer before a handler, embedded store"
    package = "onlyonce-layered"
    binary = "onlyonce-layered"
