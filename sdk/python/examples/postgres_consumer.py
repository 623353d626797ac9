"""A consumer of a queue in PostgreSQL that does each job once.

A job that is taken is hidden for a while (a visibility time-out), so that no connection is kept open while it is done.
If its consumer dies, it shows again and is taken by another one: at least once. Jobs are told apart by their id.
The last word is the side effect: a URL that takes the job's payload as JSON by POST, and answers JSON. Needs the package
``psycopg``.

    python postgres_consumer.py postgresql://127.0.0.1/app http://127.0.0.1:8788 http://127.0.0.1:9000/ship

Where the work is in the same database as the queue, a transaction does without all this; see docs/transactions.md.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import urllib.request
from typing import Any, Optional, Tuple

import psycopg

import onlyonce

TABLE = """
create table if not exists jobs (
    id bigint generated always as identity primary key,
    payload jsonb not null,
    visible_at timestamptz not null default now()
)
"""
TAKE = """
update jobs set visible_at = now() + interval '60 seconds'
where id = (
    select id from jobs where visible_at <= now() order by id limit 1 for update skip locked
)
returning id, payload
"""
DONE = "delete from jobs where id = %s"
# How long a dead consumer is believed to be at its work.
LEASE = os.environ.get("LEASE", "30s")


class Consumer:
    def __init__(self, server: str, control: str, effect: str) -> None:
        # Each statement commits at once: a job is taken, and it is done.
        self.database = psycopg.connect(server, autocommit=True)
        self.database.execute(TABLE)
        self.client = onlyonce.Client(control)
        self.effect = effect

    def take(self) -> Optional[Tuple[int, Any]]:
        """The next job, hidden from others for a while."""
        return self.database.execute(TAKE).fetchone()

    def done(self, id: int) -> None:
        """Takes the job out of the queue."""
        self.database.execute(DONE, (id,))

    def handle(self, id: int, payload: Any) -> bool:
        """Does the job, unless it is done; whether it may leave the queue."""
        try:
            with self.client.operation(f"jobs/{id}", input=payload, name="ship", lease=LEASE) as op:
                if not op.replayed:
                    op.complete(self.ship(payload))
        except onlyonce.Unknown as error:
            # A consumer died between the work and its result. The job stays, until somebody has settled it.
            logging.error("%s", error)
            return False
        return True

    def ship(self, payload: Any) -> Any:
        """The side effect, which knows nothing of keys."""
        with urllib.request.urlopen(self.effect, json.dumps(payload).encode(), timeout=60) as answer:
            return json.load(answer)

    def run_once(self) -> int:
        """Does what there is; how many jobs left the queue."""
        done = 0
        while True:
            job = self.take()
            if job is None:
                return done
            if self.handle(*job):
                self.done(job[0])
                done += 1


if __name__ == "__main__":
    consumer = Consumer(*sys.argv[1:])
    print(f"done {consumer.run_once()}", flush=True)
