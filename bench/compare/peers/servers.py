"""The two that are libraries for a server in Rust: axum-idempotent, and svix's middleware as a model."""

from __future__ import annotations

from wire import Request, ask

from .base import Peer, Program, body, headers, redis, server

LISTENING = r"listening on 127\.0\.0\.1:(\d+)"


class AxumIdempotent(Peer):
    name = "axum-idempotent"
    title = "axum-idempotent"
    version = "0.6.0"
    shape = "a tower layer before an axum handler, on its session store in memory"
    settings = (
        '`use_idempotency_key_header(Some("Idempotency-Key"), true)` and `expire_after(300)`, as in its README',
        "callers log in first, since it keeps answers in their session alone",
    )

    def install(self) -> None:
        self.program = server("behind-axum-idempotent")

    def start(self) -> None:
        self.restart()

    def restart(self) -> None:
        env = {"WORK_URL": self.work_url}
        self.process = Program([self.program], self.folder / "axum-idempotent.log", env)
        self.address = self.process.announced(LISTENING)
        cookie = ask(Request(self.address, "/login", {}, b"")).header("set-cookie")
        self.cookie = (cookie or "").split(";")[0]

    def stop(self) -> None:
        self.process.stop()

    def kill(self) -> None:
        self.process.kill()

    def request(self, action: str, order: str) -> Request:
        told = {**headers(action), "Cookie": self.cookie}
        return Request(self.address, "/work", told, body(action, order))


class SvixModel(Peer):
    name = "svix-model"
    title = "svix's approach (a model)"
    version = "as of svix/svix-webhooks 4fc0cfb8"
    shape = "a middleware before an axum handler, on Redis"
    settings = ("its constants: a lock of 5 seconds, a look every 200 ms, answers kept for 12 hours",)

    def install(self) -> None:
        self.program = server("behind-svix-model")

    def start(self) -> None:
        self.redis, self.redis_url = redis(self.folder)
        self.restart()

    def restart(self) -> None:
        env = {"WORK_URL": self.work_url, "REDIS_URL": self.redis_url}
        self.process = Program([self.program], self.folder / "svix-model.log", env)
        self.address = self.process.announced(LISTENING)

    def stop(self) -> None:
        self.process.stop()
        self.redis.stop()

    def kill(self) -> None:
        self.process.kill()

    def request(self, action: str, order: str) -> Request:
        return Request(self.address, "/work", headers(action), body(action, order))
