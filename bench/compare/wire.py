"""An HTTP/1.1 client that sees what a caller sees: each piece as it comes, and how an answer ends."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field

Address = tuple[str, int]

# How long a caller waits for the next byte, in seconds. Longer than every lock in the comparison.
PATIENCE = 45.0


@dataclass
class Request:
    """What a caller sends, each time the same."""

    address: Address
    path: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"

    def encoded(self) -> bytes:
        host = f"{self.address[0]}:{self.address[1]}"
        headers = {
            "Host": host,
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(len(self.body)),
            **self.headers,
        }
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


@dataclass
class Answer:
    """What came back. `status` 0: nothing. `complete`: the body ended as its framing says."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False

    def header(self, name: str) -> str | None:
        found = self.values(name)
        return found[0] if found else None

    def values(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name]

    def execution(self) -> int | None:
        """Of which execution of the work this tells."""
        found = re.search(rb'\\*"execution\\*": ?(\d+)', self.body)
        return int(found.group(1)) if found else None


class Call:
    """One attempt under way."""

    def __init__(self, request: Request):
        self.answer = Answer()
        self._buffer = b""
        self._socket = socket.create_connection(request.address, timeout=PATIENCE)
        self._socket.sendall(request.encoded())

    def leave(self) -> None:
        """Hangs up, whatever has come so far."""
        self._socket.close()

    def first_piece(self, seconds: float) -> bool:
        """Whether the first byte of the body comes within that time."""
        self._socket.settimeout(seconds)
        try:
            self._head()
            self._fill(1)
            return bool(self._buffer)
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(PATIENCE)

    def finish(self) -> Answer:
        """Reads to the end, or to where it breaks."""
        try:
            self._head()
            self._body()
        except (OSError, ValueError):
            pass
        finally:
            self.leave()
        return self.answer

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            self._more()

    def _more(self) -> None:
        piece = self._socket.recv(65536)
        if not piece:
            raise ConnectionError("the end, too early")
        self._buffer += piece

    def _line(self) -> bytes:
        while b"\r\n" not in self._buffer:
            self._more()
        line, self._buffer = self._buffer.split(b"\r\n", 1)
        return line

    def _head(self) -> None:
        while not self.answer.status:
            status = int(self._line().split()[1])
            headers = []
            while line := self._line():
                name, _, value = line.decode("latin-1").partition(":")
                headers.append((name.lower(), value.strip()))
            if status >= 200:
                self.answer.status, self.answer.headers = status, headers

    def _body(self) -> None:
        answer = self.answer
        length = answer.header("content-length")
        if answer.header("transfer-encoding") == "chunked":
            while size := int(self._line().split(b";")[0], 16):
                self._take(size)
                self._line()
            while self._line():
                pass
        elif length is not None:
            self._take(int(length))
        else:
            self._until_close()
        answer.complete = True

    def _take(self, size: int) -> None:
        while size:
            if not self._buffer:
                self._more()
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            self.answer.body += piece
            size -= len(piece)

    def _until_close(self) -> None:
        while piece := self._buffer or self._socket.recv(65536):
            self.answer.body += piece
            self._buffer = b""


def ask(request: Request) -> Answer:
    """One attempt from its start to its end. A refused connection is an answer of status 0."""
    try:
        return Call(request).finish()
    except OSError:
        return Answer()
