"""Runs a script as `python kill_in.py MODULE:CLASS.METHOD before|after SCRIPT ARGUMENTS...` does, and kills it
(SIGKILL) at its first call of that method, before or after the call."""

from __future__ import annotations

import importlib
import os
import runpy
import signal
import sys
from typing import Any

where, when, *sys.argv = sys.argv[1:]
module, _, path = where.partition(":")
holder: Any = importlib.import_module(module)
*way, name = path.split(".")
for part in way:
    holder = getattr(holder, part)
method = getattr(holder, name)


def killed(*args: Any, **kwargs: Any) -> None:
    if when == "after":
        method(*args, **kwargs)
    os.kill(os.getpid(), signal.SIGKILL)


setattr(holder, name, killed)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
