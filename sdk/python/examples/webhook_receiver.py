"""A receiver of webhooks that acts on each event once, however often the sender delivers it.

Senders deliver at least once: again after a time-out, after an error, after a restart of theirs. Events are told apart
by ``webhook-id`` (Standard Webhooks, https://www.standardwebhooks.com), which stays the same over all deliveries.

    WEBHOOK_SECRET=whsec_... python webhook_receiver.py 127.0.0.1:8080 http://127.0.0.1:8788 orders.jsonl
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import onlyonce

LARGEST = 1 << 20
TOLERANCE = 300
# How long a dead receiver is believed to be at its work.
LEASE = os.environ.get("LEASE", "30s")


def is_signed(secret: bytes, id: str, timestamp: str, body: bytes, signatures: str) -> bool:
    """Whether the sender, who knows `secret`, signed this event lately."""
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > TOLERANCE:
        return False
    signed = hmac.new(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    expected = "v1," + base64.b64encode(signed).decode()
    return any(hmac.compare_digest(expected, signature) for signature in signatures.split(" "))


def order_of(body: bytes) -> Any:
    """The order that the event is about.

    Raises:
        ValueError: It is about none.
    """
    event = json.loads(body)
    if not isinstance(event, dict) or "order" not in event:
        raise ValueError("the event has no order")
    return event


def ship(order: Any, book: Path) -> Any:
    """What is to happen once for each event: here, a line in a book."""
    with book.open("a") as out:
        out.write(json.dumps(order) + "\n")
    return {"shipped": order["order"]}


class Receiver(BaseHTTPRequestHandler):
    """Answers 200 once the event was acted on, now or before."""

    client: onlyonce.Client
    secret: bytes
    book: Path

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length") or "0"
        if not length.isdecimal() or int(length) > LARGEST:
            self.close_connection = True
            return self.answer(413, {"error": f"an event has up to {LARGEST} bytes"})
        body = self.rfile.read(int(length))
        id = self.headers.get("webhook-id") or ""
        timestamp, signatures = self.headers.get("webhook-timestamp") or "", self.headers.get("webhook-signature") or ""
        if not id or not is_signed(self.secret, id, timestamp, body, signatures):
            return self.answer(401, {"error": "not signed"})
        try:
            order = order_of(body)
        except ValueError as error:
            # Before it begins: what cannot be acted on must not leave an operation of which nobody knows.
            return self.answer(400, {"error": str(error)})
        try:
            # Only what is signed names a key: nobody else can use one up.
            with self.client.operation(f"webhook/{id}", input=order, wait="10s", name="webhook", lease=LEASE) as event:
                if not event.replayed:
                    event.complete(ship(order, self.book))
        except onlyonce.InFlight:
            # Another delivery of it is being acted on: the sender is to ask again.
            return self.answer(503, {"error": "in flight"})
        except onlyonce.KeyReused as error:
            return self.answer(400, {"error": str(error)})
        except onlyonce.OnlyonceError as error:
            # Of an unknown outcome too: it is delivered until somebody has settled it, and does nothing.
            return self.answer(500, {"error": str(error)})
        self.answer(200, {"replayed": event.replayed, **event.result})

    def answer(self, status: int, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


def main(listen: str, control: str, book: str) -> None:
    Receiver.client = onlyonce.Client(control)
    Receiver.secret = base64.b64decode(os.environ["WEBHOOK_SECRET"].partition("_")[2])
    Receiver.book = Path(book)
    host, _, port = listen.rpartition(":")
    server = ThreadingHTTPServer((host, int(port)), Receiver)
    print(f"listening on http://{host}:{server.server_address[1]}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
