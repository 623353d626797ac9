"""A consumer of a Redis stream that does each message's work once.

A consumer group delivers at least once: what a consumer took and never acknowledged, because it died, is claimed by
another one after a while (XAUTOCLAIM). Messages are told apart by their id, which stays the same over all deliveries.
The last word is the side effect: a URL that takes the message's fields as JSON by POST, and answers JSON. Needs the
package ``redis``.

    python redis_consumer.py redis://127.0.0.1:6379 http://127.0.0.1:8788 http://127.0.0.1:9000/ship
"""

from __future__ import annotations

import json
import logging
import os
import sys
import urllib.request
from typing import Any, Dict, Iterator, Set, Tuple

import redis

import onlyonce

STREAM, GROUP = "orders", "shipping"
# After this long without an acknowledgement a message is somebody else's, in milliseconds. It may be too short: a
# second consumer then waits for the first one's result.
IDLE = int(os.environ.get("IDLE_MS", "60000"))
# How long a dead consumer is believed to be at its work.
LEASE = os.environ.get("LEASE", "30s")

Message = Tuple[str, Dict[str, str]]


class Consumer:
    def __init__(self, server: str, control: str, effect: str, name: str) -> None:
        self.redis = redis.Redis.from_url(server, decode_responses=True)
        self.client = onlyonce.Client(control)
        self.effect = effect
        self.name = name
        self.told_of: Set[str] = set()
        try:
            self.redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        except redis.ResponseError as error:
            # Another consumer has made it.
            if "BUSYGROUP" not in str(error):
                raise

    def messages(self) -> Iterator[Message]:
        """What others left behind, then what is new."""
        found: Any = self.redis.xautoclaim(STREAM, GROUP, self.name, min_idle_time=IDLE, count=10)
        yield from found[1]
        news: Any = self.redis.xreadgroup(GROUP, self.name, {STREAM: ">"}, count=10, block=100)
        for _, messages in news:
            yield from messages

    def handle(self, id: str, fields: Dict[str, str]) -> bool:
        """Does the message's work, unless it is done; whether it may be acknowledged."""
        try:
            # An id is unique within its stream.
            with self.client.operation(f"{STREAM}/{id}", input=fields, name="ship", lease=LEASE) as op:
                if not op.replayed:
                    op.complete(self.ship(fields))
        except onlyonce.Unknown as error:
            # A consumer died between the work and its result. The message stays, until somebody has settled it, and
            # comes again after each time of idleness.
            if id not in self.told_of:
                self.told_of.add(id)
                logging.error("%s", error)
            return False
        return True

    def ship(self, fields: Dict[str, str]) -> Any:
        """The side effect, which knows nothing of keys."""
        with urllib.request.urlopen(self.effect, json.dumps(fields).encode(), timeout=60) as answer:
            return json.load(answer)

    def run_once(self) -> int:
        """Handles what there is; how many messages were acknowledged."""
        done = 0
        for id, fields in self.messages():
            if self.handle(id, fields):
                done += int(self.redis.xack(STREAM, GROUP, id))
        return done


if __name__ == "__main__":
    server, control, effect = sys.argv[1:]
    consumer = Consumer(server, control, effect, f"consumer-{os.getpid()}")
    while True:
        done = consumer.run_once()
        if done or os.environ.get("ONE_ROUND"):
            print(f"acknowledged {done}", flush=True)
        if os.environ.get("ONE_ROUND"):
            break
