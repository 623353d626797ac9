"""AWS Powertools for Python: a Lambda handler, on a pretended DynamoDB.

There is no Lambda here. In its place stands a server that gives each call to a process of its own, as Lambda
gives each to an execution environment, and lets it go on when the caller hangs up, as Lambda does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from wire import Request

from .base import HERE, PLACE, QUIET, Peer, Program, body, free_port, headers, python

FUNCTION_TIMEOUT_S = 10


class Powertools(Peer):
    name = "powertools"
    title = "AWS Powertools for Python"
    version = "3.37.0"
    shape = "a decorator around a Lambda handler, on DynamoDB (moto 5.2.5 in its place)"
    settings = (
        '`event_key_jmespath=\'headers."Idempotency-Key"\'`, `payload_validation_jmespath="body"` '
        "(off by default), `raise_on_no_idempotency_key=True`",
        f"the function's time-out is {FUNCTION_TIMEOUT_S} s (Lambda's default is 3 s)",
        "the handler returns what the work answers, and raises where that is a 5xx or breaks off",
        "the harness tells `IdempotencyAlreadyInProgressError` as 409, `IdempotencyValidationError` as 422, "
        "any other error as 502",
    )

    def install(self) -> None:
        self.python = python()

    def start(self) -> None:
        port = free_port()
        moto = PLACE / "venv/bin/moto_server"
        self.dynamodb = Program([moto, "-H", "127.0.0.1", "-p", str(port)], self.folder / "moto.log")
        self.dynamodb.listens(("127.0.0.1", port))
        self.env = {
            **os.environ,
            **QUIET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "none",
            "AWS_SECRET_ACCESS_KEY": "none",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "WORK_URL": self.work_url,
            "FUNCTION_TIMEOUT_S": str(FUNCTION_TIMEOUT_S),
        }
        self.running: set[subprocess.Popen[str]] = set()
        self.invoke("create-table")
        self.front = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.front.daemon_threads = True
        threading.Thread(target=self.front.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.front.shutdown()
        self.front.server_close()
        self.kill()
        self.dynamodb.stop()

    def kill(self) -> None:
        for process in list(self.running):
            process.send_signal(signal.SIGKILL)
            process.wait()

    def restart(self) -> None:
        """Each call starts anew."""

    def request(self, action: str, order: str) -> Request:
        address = ("127.0.0.1", self.front.server_address[1])
        return Request(address, "/work", headers(action), body(action, order))

    def invoke(self, event: str) -> str:
        """One call, in a process of its own; empty if that was killed."""
        process = subprocess.Popen(
            [self.python, HERE / "servers/lambda_function.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self.env,
            text=True,
        )
        self.running.add(process)
        try:
            return process.communicate(event)[0]
        finally:
            self.running.discard(process)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        invoke = self.invoke

        class Front(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers["Content-Length"])).decode()
                event = {"headers": dict(self.headers), "body": sent}
                said = invoke(json.dumps(event)) or '{"statusCode": 502, "body": "the function died"}'
                try:
                    self._tell(json.loads(said))
                except OSError:
                    self.close_connection = True  # The caller has left.

            def _tell(self, answer: dict) -> None:
                content = answer["body"].encode()
                self.send_response(answer["statusCode"])
                for name, values in answer.get("multiValueHeaders", {}).items():
                    for value in values:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Front
