"""Runs a script as `python kill_at.py N SCRIPT ARGUMENTS...` does, and kills it (SIGKILL) at its N-th outer effect.

An effect is a connection that is opened or a file that gets its name: between two of them nobody outside can tell
where it was killed. With N = 0 it runs to its end and prints how many there were.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from typing import Any

EFFECTS = ("socket.connect", "http.client.send", "os.link", "os.rename")

at, sys.argv = int(sys.argv[1]), sys.argv[2:]
seen = 0


def hook(event: str, arguments: Any) -> None:
    global seen
    if event not in EFFECTS:
        return
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)


# What the imports do is none of the script's effects.
sys.path.insert(0, os.path.dirname(sys.argv[0]))
sys.addaudithook(hook)
runpy.run_path(sys.argv[0], run_name="__main__")
print(f"effects {seen}", flush=True)
