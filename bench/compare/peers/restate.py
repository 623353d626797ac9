"""Restate: its server, and a service by its Python SDK that calls the work in a durable step."""

from __future__ import annotations

import json

from wire import Request

from .base import HERE, PLACE, Peer, Program, body, free_port, headers, python, run

VERSION = "1.7.12"


class Restate(Peer):
    name = "restate"
    title = "Restate"
    version = f"server {VERSION}, Python SDK 1.3.0"
    shape = "a server that keeps a journal, before a service that does the work in `ctx.run`"
    settings = (
        "one node, its defaults",
        "the step raises `TerminalError` where the work answers a 4xx, and another error where it answers a "
        "5xx or breaks off",
    )

    # How often the step is tried, if that is limited.
    max_attempts = ""

    def install(self) -> None:
        self.python = python()
        place = PLACE / "restate"
        package = place / "node_modules/@restatedev/restate-server-linux-x64"
        manifest = package / "package.json"
        if not manifest.exists() or json.loads(manifest.read_text())["version"] != VERSION:
            place.mkdir(parents=True, exist_ok=True)
            install = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts"]
            run([*install, "--prefix", place, f"@restatedev/restate-server@{VERSION}"])
        self.program = package / "bin/restate-server"

    def start(self) -> None:
        self.ports = {name: free_port() for name in ("ingress", "admin", "node", "service")}
        self.start_server()
        self.restart()
        uri = f"http://127.0.0.1:{self.ports['service']}"
        deployment = json.dumps({"uri": uri}).encode()
        self.server.answers(Request(self._at("admin"), "/deployments", {}, deployment))

    def start_server(self) -> None:
        env = {
            "RESTATE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{self.ports['ingress']}",
            "RESTATE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{self.ports['admin']}",
            "RESTATE_BIND_ADDRESS": f"127.0.0.1:{self.ports['node']}",
            "RESTATE_BASE_DIR": str(self.folder / "restate-data"),
        }
        command = [self.program, "--no-logo", "--listen-mode", "tcp", "--node-name", "compare"]
        self.server = Program(command, self.folder / "restate-server.log", env)
        health = Request(self._at("admin"), "/health", {}, b"", method="GET")
        self.server.answers(health)
        self.server.listens(self._at("ingress"))

    def restart(self) -> None:
        command = [self.python, HERE / "servers/restate_service.py", str(self.ports["service"])]
        env = {"WORK_URL": self.work_url, "MAX_ATTEMPTS": self.max_attempts}
        self.service = Program(command, self.folder / "restate-service.log", env)
        self.service.listens(self._at("service"))

    def stop(self) -> None:
        self.service.stop()
        self.server.stop()

    def kill(self) -> None:
        self.service.kill()

    def request(self, action: str, order: str) -> Request:
        return Request(self._at("ingress"), "/Work/do", headers(action), body(action, order))

    def _at(self, name: str) -> tuple[str, int]:
        return ("127.0.0.1", self.ports[name])


class RestateOneTry(Restate):
    name = "restate-one-try"
    title = "Restate, one try"
    settings = (
        "`RunOptions(max_attempts=1)`: a step that fails is not tried again, and its error is the answer",
        *Restate.settings,
    )
    max_attempts = "1"
