"""idempotent-proxy-server, with Redis, set up as its README shows."""

from __future__ import annotations

from wire import Request

from .base import TARGET, Peer, Program, body, free_port, headers, redis, run

VERSION = "1.2.2"


class IdempotentProxy(Peer):
    name = "idempotent-proxy"
    title = "idempotent-proxy"
    version = VERSION
    shape = "a reverse proxy, on Redis"
    settings = (
        "`REQUEST_TIMEOUT=10000`, as in its README and by default: the time-out of a request, the life of a "
        "lock and the window of an answer, all in one",
        "`POLL_INTERVAL=100`, the same",
    )

    def install(self) -> None:
        # The folder of `cargo xtask bench`, which measures it.
        place = TARGET / "bench-peers"
        self.program = place / "bin/idempotent-proxy-server"
        if not self.program.exists():
            install = ["cargo", "install", "--locked", "--version", VERSION]
            install += ["idempotent-proxy-server", "--root", str(place)]
            run(install, {"CARGO_TARGET_DIR": str(place / "target")})

    def start(self) -> None:
        # It refuses to start without such a file.
        (self.folder / ".env").write_text("")
        self.redis, self.redis_url = redis(self.folder)
        self.address = ("127.0.0.1", free_port())
        self.restart()

    def restart(self) -> None:
        env = {
            "SERVER_ADDR": f"127.0.0.1:{self.address[1]}",
            "REDIS_URL": self.redis_url,
            "REQUEST_TIMEOUT": "10000",
            "POLL_INTERVAL": "100",
            "URL_WORK": self.work_url,
        }
        self.process = Program([self.program], self.folder / "idempotent-proxy.log", env)
        self.process.listens(self.address)

    def stop(self) -> None:
        self.process.stop()
        self.redis.stop()

    def kill(self) -> None:
        self.process.kill()

    def request(self, action: str, order: str) -> Request:
        return Request(self.address, "/URL_WORK", headers(action), body(action, order))
