"""The work behind every peer: a server that counts what it does, and ends it as it was told to.

Every request counts as one execution of the action that its body names, at the moment it was read, before
any answer. The ledger is append-only, and it alone says how often something ran.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# However a scenario ends, nothing is held for longer than this, in seconds.
HELD_AT_MOST = 60.0
# How many events a stream has.
EVENTS = 5


@dataclass
class Behaviour:
    """How one execution ends. With a gate, its end waits until that is opened."""

    status: int = 200
    gate: threading.Event | None = None
    streams: bool = False
    cuts: bool = False


@dataclass
class Execution:
    """One entry of the ledger."""

    action: str
    number: int
    order: str
    behaviour: Behaviour
    # Who asked hung up before the answer.
    left: threading.Event = field(default_factory=threading.Event)
    # Nothing more comes of it: it was answered, or nobody was there any more.
    over: threading.Event = field(default_factory=threading.Event)

    def answer(self) -> bytes:
        told = {"action": self.action, "execution": self.number, "order": self.order}
        return json.dumps(told).encode() + b"\n"

    def pieces(self) -> list[bytes]:
        """The events of a stream."""
        numbers = range(1, EVENTS + 1)
        events = [{"execution": self.number, "piece": piece} for piece in numbers]
        return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in events]


class Work:
    """The server, its plan and its ledger."""

    def __init__(self) -> None:
        self.ledger: list[Execution] = []
        self._plans: dict[str, list[Behaviour]] = {}
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host}:{port}/work"

    def plan(self, action: str, *behaviours: Behaviour) -> None:
        """How the executions of this action end, in order; those after them are answered at once."""
        self._plans[action] = list(behaviours)

    def executions(self, action: str) -> list[Execution]:
        with self._changed:
            return [entry for entry in self.ledger if entry.action == action]

    def ran(self, action: str, times: int, seconds: float) -> bool:
        """Waits until the action ran that often; whether it did within that time."""
        enough: Callable[[], bool] = lambda: len(self.executions(action)) >= times
        with self._changed:
            return self._changed.wait_for(enough, seconds)

    def changed(self) -> threading.Condition:
        """Notified at each execution; whoever else wants to be waited for may notify it too."""
        return self._changed

    def _begin(self, body: bytes) -> Execution:
        told = json.loads(body)
        with self._changed:
            number = len(self.executions(told["action"])) + 1
            planned = self._plans.get(told["action"], [])
            behaviour = planned[number - 1] if number <= len(planned) else Behaviour()
            execution = Execution(told["action"], number, told["order"], behaviour)
            self.ledger.append(execution)
            self._changed.notify_all()
        return execution

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        begin = self._begin

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                execution = begin(body)
                try:
                    self._end(execution)
                except OSError:
                    execution.left.set()
                finally:
                    execution.over.set()

            def _end(self, execution: Execution) -> None:
                behaviour = execution.behaviour
                if behaviour.streams:
                    self._stream(execution)
                    return
                self._wait(execution)
                if behaviour.cuts:
                    self._cut()
                    return
                answer = execution.answer()
                self._head(execution, "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def _stream(self, execution: Execution) -> None:
                self._head(execution, "text/event-stream")
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                first, *others = execution.pieces()
                self._chunk(first)
                self._wait(execution)
                for piece in others:
                    self._chunk(piece)
                self.wfile.write(b"0\r\n\r\n")

            def _head(self, execution: Execution, kind: str) -> None:
                self.send_response(execution.behaviour.status)
                self.send_header("Content-Type", kind)
                self.send_header("X-Work-Execution", str(execution.number))
                # One name twice.
                self.send_header("X-Work-Note", "one")
                self.send_header("X-Work-Note", "two")

            def _chunk(self, piece: bytes) -> None:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))

            def _wait(self, execution: Execution) -> None:
                """Until the gate opens; meanwhile it sees whether anybody is there."""
                gate = execution.behaviour.gate
                tries = int(HELD_AT_MOST / 0.02)
                while gate and not gate.wait(0.02) and tries:
                    tries -= 1
                    if not execution.left.is_set() and self._gone():
                        execution.left.set()

            def _gone(self) -> bool:
                readable, _, _ = select.select([self.connection], [], [], 0)
                try:
                    return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
                except OSError:
                    return True

            def _cut(self) -> None:
                """The work is done, and nobody is told: the connection is reset without a byte."""
                at_once = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
