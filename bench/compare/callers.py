"""Callers, and what each of them was told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wire import Answer, Request, ask

# A caller tries again after these, and after no answer at all, as clients of paid APIs do.
RETRIED = {0, 408, 409, 425, 429, 500, 502, 503, 504}
PAUSE_S = 0.5
# After this long it gives up, in seconds. Longer than every lock and time-out in the comparison.
GIVE_UP_S = 40.0


@dataclass
class Caller:
    """One who asks until it has an answer that it need not ask again for."""

    name: str
    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def last(self) -> Answer:
        return self.answers[-1] if self.answers else Answer()

    def ask_once(self, request: Request) -> Caller:
        self.answers.append(ask(request))
        return self

    def ask_until_answered(self, request: Callable[[], Request]) -> Caller:
        since = time.monotonic()
        while not self.answers or (is_retried(self.last) and self.seconds < GIVE_UP_S):
            if self.answers:
                time.sleep(PAUSE_S)
            self.answers.append(ask(request()))
            self.seconds = time.monotonic() - since
        return self

    def told(self) -> str:
        """In words: each answer once, however often it came in a row."""
        words: list[str] = []
        for answer in self.answers:
            if not words or words[-1] != told(answer):
                words.append(told(answer))
        waited = f", after {round(self.seconds)} s" if self.seconds >= 3 else ""
        return f"{self.name}: {', then '.join(words)}{waited}"


class Background:
    """A caller that asks while others do."""

    def __init__(self, ask: Callable[[], object], then: Callable[[], None] = lambda: None):
        def run() -> None:
            ask()
            self.done.set()
            then()

        self.done = threading.Event()
        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def join(self) -> None:
        self._thread.join()


def is_retried(answer: Answer) -> bool:
    if answer.header("x-should-retry") == "false":
        return False
    return answer.status in RETRIED or not answer.complete


def says_unknown(answer: Answer) -> bool:
    return b"outcome-unknown" in answer.body


def told(answer: Answer) -> str:
    if not answer.status:
        return "no answer"
    if says_unknown(answer):
        return f"{answer.status} (it may have run; do not retry)"
    end = "" if answer.complete else ", broken off"
    execution = answer.execution()
    if execution is not None:
        return f"{answer.status} of execution {execution}{end}"
    why = next((why for sign, why in REFUSALS if sign in answer.body), None)
    return f"{answer.status}{f' ({why})' if why else ''}{end}"


# How refusals of the compared are known by their bodies.
REFUSALS = (
    (b"key-reused", "the key was used for another request"),
    (b"IdempotencyValidationError", "the payload is another one"),
    (b"IdempotencyAlreadyInProgressError", "still in progress"),
    (b"polling get cache timeout", "no answer in time"),
    (b"not obtained", "the lock is gone"),
    (b"the function died", "the function died"),
    (b"the work:", "the work broke off"),
    (b"error sending request", "the work broke off"),
    (b"RemoteDisconnected", "the work broke off"),
    (b"Connection reset", "the work broke off"),
)
