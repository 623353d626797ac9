"""One HTTP/1.1 exchange with the control listener, blocking and on asyncio, by the standard library alone.

Each request has a connection of its own: none can go stale between two heartbeats, and threads share nothing.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import ssl
from dataclasses import dataclass
from typing import Dict, Mapping, Optional
from urllib.parse import urlsplit

from ._protocol import Request, Response, TransportError


@dataclass(frozen=True)
class Address:
    """Where the control listener is."""

    host: str
    port: int
    path: str
    tls: Optional[ssl.SSLContext]

    @classmethod
    def of(cls, url: str, tls: Optional[ssl.SSLContext] = None) -> Address:
        """Reads `url`.

        Raises:
            ValueError: It is no http or https URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no URL of a control listener, like http://127.0.0.1:8788")
        if parts.scheme == "https":
            tls = tls or ssl.create_default_context()
        else:
            tls = None
        return cls(parts.hostname, parts.port or (443 if tls else 80), parts.path.rstrip("/"), tls)


def send(address: Address, headers: Mapping[str, str], request: Request) -> Response:
    """Sends `request`, and waits for its whole answer.

    Raises:
        TransportError: There is none.
    """
    if address.tls is None:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=request.patience)
    else:
        connection = http.client.HTTPSConnection(
            address.host, address.port, timeout=request.patience, context=address.tls
        )
    try:
        connection.request(request.method, address.path + request.path, request.body, dict(headers))
        answer = connection.getresponse()
        body = answer.read()
        return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, body)
    except (OSError, http.client.HTTPException) as error:
        raise TransportError(_words(error)) from error
    finally:
        connection.close()


async def send_async(address: Address, headers: Mapping[str, str], request: Request) -> Response:
    """The same on asyncio.

    Raises:
        TransportError: There is none.
    """
    try:
        return await asyncio.wait_for(_exchange(address, headers, request), request.patience)
    except (OSError, EOFError, ValueError, http.client.HTTPException, asyncio.TimeoutError) as error:
        raise TransportError(_words(error)) from error


async def _exchange(address: Address, headers: Mapping[str, str], request: Request) -> Response:
    reader, writer = await asyncio.open_connection(address.host, address.port, ssl=address.tls)
    try:
        writer.write(_head(address, headers, request) + (request.body or b""))
        await writer.drain()
        return await _answer(reader)
    finally:
        writer.close()


def _head(address: Address, headers: Mapping[str, str], request: Request) -> bytes:
    host = f"[{address.host}]" if ":" in address.host else address.host
    lines = [f"{request.method} {address.path}{request.path} HTTP/1.1", f"Host: {host}:{address.port}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += ["Connection: close", f"Content-Length: {len(request.body or b'')}"]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header has a line break in it")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _answer(reader: asyncio.StreamReader) -> Response:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        line, _, fields = head.partition(b"\r\n")
        version, status, *_ = line.decode("latin-1").split(" ")
        if not version.startswith("HTTP/1."):
            raise http.client.BadStatusLine(repr(line))
        # An interim answer stands before the real one.
        if int(status) >= 200:
            break
    parsed = http.client.parse_headers(io.BytesIO(fields))
    named: Dict[str, str] = {name.lower(): value for name, value in parsed.items()}
    if "chunked" in named.get("transfer-encoding", "").lower():
        body = await _chunks(reader)
    elif "content-length" in named:
        body = await reader.readexactly(int(named["content-length"]))
    else:
        body = await reader.read()
    return Response(int(status), named, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while True:
        size = int((await reader.readline()).split(b";")[0], 16)
        # With the line break that ends the chunk, and after the last one the one that ends the body.
        chunk = await reader.readexactly(size + 2)
        if size == 0:
            return body
        body += chunk[:-2]


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__
