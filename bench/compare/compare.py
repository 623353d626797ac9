#!/usr/bin/env python3
"""Eight scenarios on Onlyonce and on others: who runs twice, who answers wrongly, who says so.

    python3 bench/compare/compare.py                    all peers; writes results.json and docs/compare.md
    python3 bench/compare/compare.py --only NAME,...    these alone; writes their part
    python3 bench/compare/compare.py --check            fails if results.json says otherwise; writes nothing
    python3 bench/compare/compare.py --page             runs nothing; writes the page's tables anew

Peers are fetched and built into target/compare and target/bench-peers on first use: that needs cargo, npm,
python3 with venv, and redis-server; Onlyonce needs cargo alone, and not even that with --only and its program
in ONLYONCE_COMPARED_PROGRAM. Everything listens on 127.0.0.1.

What is where:

    scenarios.py   the steps, and the judge
    callers.py     who asks again when, and what an answer is called
    work.py        the work behind every peer, and its ledger
    wire.py        an HTTP client that can hang up, and sees how an answer ends
    peers/         one adapter for each peer: how it is got, set up, started, killed, and asked
    servers/       our own small servers around those peers that are libraries
    page.py        the tables of docs/compare.md

It is in Python, and not one of xtask's commands, since two peers are Python packages and nothing here but
Onlyonce is to be part of our build. It needs no package of its own.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import re
import shutil
import sys
import tempfile
from pathlib import Path

import page
from peers import PEERS
from peers.base import HERE, PLACE, Peer
from scenarios import Scenarios
from work import Work

RESULTS = HERE / "results.json"


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--only", help="names of peers, with commas between them")
    options.add_argument("--check", action="store_true", help="compare with results.json, write nothing")
    options.add_argument("--page", action="store_true", help="run nothing, write the page's tables")
    options.add_argument("--long-work", type=float, default=8.0, help="seconds of the long work")
    asked = options.parse_args()

    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    results = {peer["name"]: peer for peer in known}
    if not asked.page:
        chosen = choose(asked.only)
        if asked.check:
            # Only those that let pieces through are checked: they need no limit, and a busy machine none.
            found = [run(peer, asked.long_work, first_piece_s=30.0) for peer in chosen]
            return check(results, found)
        results.update({peer.name: run(peer, asked.long_work) for peer in chosen})
        known = [results[peer.name] for peer in PEERS if peer.name in results]
        RESULTS.write_text(json.dumps(known, indent=1, ensure_ascii=False) + "\n")
    page.write(known)
    return 0


def choose(only: str | None) -> list[type[Peer]]:
    if not only:
        return list(PEERS)
    by_name = {peer.name: peer for peer in PEERS}
    unknown = set(only.split(",")) - set(by_name)
    if unknown:
        sys.exit(f"no such peer: {', '.join(unknown)}; there are {', '.join(by_name)}")
    return [by_name[name] for name in only.split(",")]


def run(kind: type[Peer], long_work_s: float, **limits: float) -> dict:
    """All scenarios on one peer, from an empty store."""
    PLACE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{kind.name}-", dir=PLACE))
    work = Work()
    peer = kind(work.url, folder)
    print(f"{kind.title} ({kind.version})", flush=True)
    peer.install()
    peer.start()
    parts = []
    try:
        for part in Scenarios(peer, work, long_work_s, **limits).all():
            said = "; ".join([*part.told, part.seen] if part.seen else part.told)
            print(f"  {part.scenario}: {part.verdict} (ran {part.executions}x): {said}", flush=True)
            parts.append(part.as_json())
    finally:
        peer.stop()
    # What a run that broke off left is there to look at.
    shutil.rmtree(folder)
    return {
        "name": kind.name,
        "title": kind.title,
        "version": kind.version,
        "shape": kind.shape,
        "settings": list(kind.settings),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "parts": parts,
    }


def check(known: dict[str, dict], found: list[dict]) -> int:
    """Whether what was found is what was known; prints what is not."""
    wrong = 0
    for peer in found:
        for before, now in itertools.zip_longest(known[peer["name"]]["parts"], peer["parts"]):
            if untimed(before) != untimed(now):
                wrong += 1
                print(f"{peer['name']}: results.json says {before}, this run {now}")
    print(f"{len(found)} compared, {wrong} scenarios differ")
    return 1 if wrong else 0


def untimed(part: dict) -> str:
    """Without how long a retry took: that is the machine's."""
    return re.sub(r", after \d+ s", "", json.dumps(part))


if __name__ == "__main__":
    sys.exit(main())
