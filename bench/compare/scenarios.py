"""The eight scenarios, some in several forms, judged by the ledger and by what the callers were told.

Nothing waits for a time to pass where it could wait for something to happen: the work holds its answer until
the scenario lets it go, and the ledger says when it began.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from callers import Background, Caller, is_retried, says_unknown
from peers.base import Peer
from wire import Answer, Call, Request
from work import EVENTS, Behaviour, Work

# How long a peer may take to begin an execution, in seconds.
BEGINS_S = 30.0
# How long the work waits for what may come, in seconds: a first piece, a peer that hangs up, a second
# execution. Less than every lock in the comparison.
MAY_COME_S = 2.0


@dataclass
class Part:
    """One line of the results: a scenario, or one of its forms."""

    scenario: str
    verdict: str
    executions: int
    told: list[str]
    # What else was seen.
    seen: str = ""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


class Scenarios:
    """The scenarios on one peer."""

    def __init__(self, peer: Peer, work: Work, long_work_s: float, first_piece_s: float = MAY_COME_S):
        self.peer = peer
        self.work = work
        self.long_work_s = long_work_s
        self.first_piece_s = first_piece_s

    def all(self) -> Iterator[Part]:
        yield self.new()
        for status in (200, 402, 500):
            yield self.replay(status)
        yield self.concurrent("1 s of work", 1.0)
        yield self.concurrent("8 s of work", self.long_work_s)
        yield self.mismatch()
        yield self.caller_gone()
        yield self.process_killed()
        yield self.streamed()
        yield self.left_midway()
        yield self.lost_ack()

    def new(self) -> Part:
        """A key that nobody used."""
        ask, action = self._action("new")
        first = Caller("first").ask_once(ask())
        return self._part("new", action, [first])

    def replay(self, status: int) -> Part:
        """The same request again, after its answer."""
        ask, action = self._action(f"replay-{status}", Behaviour(status=status))
        first = Caller("first").ask_once(ask())
        again = Caller("retry").ask_once(ask())
        name = "replay" if status == 200 else f"replay, an answer of {status}"
        part = self._part(name, action, [first, again], expected=status)
        if status == 200:
            part.seen = differences(first.last, again.last)
        return part

    def concurrent(self, name: str, seconds: float) -> Part:
        """The same request twice at once: the second comes while the first runs."""
        gate = threading.Event()
        ask, action = self._action(f"concurrent-{name[0]}", Behaviour(gate=gate))
        first, second = Caller("first"), Caller("second")
        one = Background(lambda: first.ask_until_answered(ask))
        self._began(action)
        two = Background(lambda: second.ask_until_answered(ask), self._wake)
        # The first is answered after that time, or as soon as the second ran or was answered.
        over = lambda: two.done.is_set() or len(self.work.executions(action)) > 1
        with self.work.changed():
            self.work.changed().wait_for(over, seconds)
        gate.set()
        one.join()
        two.join()
        first.seconds = second.seconds = 0
        return self._part(f"concurrent, {name}", action, [first, second])

    def mismatch(self) -> Part:
        """The key of a finished request, with another body."""
        ask, action = self._action("mismatch")
        first = Caller("first").ask_once(ask())
        other = Caller("other").ask_once(self.peer.request(action, "another order"))
        part = self._part("mismatch", action, [first, other])
        if part.executions == 1:
            part.verdict = "wrong answer" if other.last.status < 300 else "once"
        return part

    def caller_gone(self) -> Part:
        """The caller hangs up while the work runs, and asks again."""
        gate = threading.Event()
        ask, action = self._action("gone", Behaviour(gate=gate))
        call = Call(ask())
        self._began(action)
        call.leave()
        hung_up = self.work.executions(action)[0].left.wait(MAY_COME_S)
        retry = Caller("retry")
        again = Background(lambda: retry.ask_until_answered(ask))
        self.work.ran(action, 2, MAY_COME_S)
        gate.set()
        again.join()
        part = self._part("caller gone", action, [retry])
        part.seen = "hangs up on the work when the caller leaves" if hung_up else ""
        return part

    def process_killed(self) -> Part:
        """Signal 9 after the work was done and before the peer knew of it; a restart, and a retry."""
        gate = threading.Event()
        ask, action = self._action("killed", Behaviour(gate=gate))
        first = Caller("first")
        one = Background(lambda: first.ask_once(ask()))
        self._began(action)
        self.peer.kill()
        gate.set()
        self.peer.restart()
        retry = Caller("retry").ask_until_answered(ask)
        one.join()
        return self._part("process killed", action, [first, retry])

    def streamed(self) -> Part:
        """Server-sent events: read to their end, and asked for again."""
        gate = threading.Event()
        ask, action = self._action("streamed", Behaviour(streams=True, gate=gate))
        first = Caller("first")
        call = Call(ask())
        self._began(action)
        lives = call.first_piece(self.first_piece_s)
        gate.set()
        first.answers.append(call.finish())
        again = Caller("retry").ask_until_answered(ask)
        part = self._part("streamed", action, [first, again])
        part.seen = "pieces come as they are made" if lives else "one answer, at the end"
        if part.executions == 1:
            same = first.last.body == again.last.body
            part.seen += "; the replay is the same" if same else "; the replay differs"
        part = whole(part, again)
        if part.verdict == "once" and not lives:
            part.verdict = "once, buffered"
        return part

    def left_midway(self) -> Part:
        """Server-sent events: left after the first, and asked for again."""
        gate = threading.Event()
        ask, action = self._action("left", Behaviour(streams=True, gate=gate))
        call = Call(ask())
        self._began(action)
        call.first_piece(self.first_piece_s)
        call.leave()
        execution = self.work.executions(action)[0]
        execution.left.wait(MAY_COME_S)
        gate.set()
        execution.over.wait(BEGINS_S)
        retry = Caller("retry").ask_until_answered(ask)
        return whole(self._part("streamed, left midway", action, [retry]), retry)

    def lost_ack(self) -> Part:
        """The work is done, and its connection breaks before a byte of the answer."""
        ask, action = self._action("lost", Behaviour(cuts=True))
        first = Caller("first").ask_once(ask())
        retry = Caller("retry").ask_until_answered(ask)
        return self._part("lost ack", action, [first, retry])

    def _action(self, name: str, *plan: Behaviour) -> tuple[Callable[[], Request], str]:
        """A new action with this plan: how it is asked for, and its name."""
        action = f"{self.peer.name}-{name}"
        self.work.plan(action, *plan)
        return lambda: self.peer.request(action, "an order"), action

    def _began(self, action: str) -> None:
        if not self.work.ran(action, 1, BEGINS_S):
            raise RuntimeError(f"{action}: nothing ran")

    def _wake(self) -> None:
        with self.work.changed():
            self.work.changed().notify_all()

    def _part(self, name: str, action: str, callers: list[Caller], expected: int = 200) -> Part:
        executions = len(self.work.executions(action))
        verdict = judge(executions, [caller.last for caller in callers], expected)
        return Part(name, verdict, executions, [caller.told() for caller in callers])


def judge(executions: int, last: list[Answer], expected: int) -> str:
    """One word for what happened. `last` is the last answer of each caller."""
    if executions == 0:
        return "not run"
    if executions > 1:
        return "twice"
    *_, settled = last
    if says_unknown(settled):
        return "says unknown"
    if settled.status != expected or not settled.complete:
        return "an error" if is_retried(settled) else "wrong answer"
    # Whoever has a whole answer has that of the one execution. A refusal may come in other words.
    of = {1} if expected == 200 else {1, None}
    whole = [answer for answer in last if answer.status == expected and answer.complete]
    return "once" if all(answer.execution() in of for answer in whole) else "wrong answer"


def whole(part: Part, caller: Caller) -> Part:
    """A stream counts only with all its events."""
    if part.verdict == "once" and caller.last.body.count(b"piece") != EVENTS:
        part.verdict = "wrong answer"
    return part


# What an answer of one time has, and another one may have or not.
OF_ONE_TIME = {"date", "connection", "keep-alive", "transfer-encoding", "content-length"}
# How a replay says that it is one.
MARKS = {"idempotent-replayed", "idempotency-replayed"}


def differences(first: Answer, again: Answer) -> str:
    """What a replay says other than the first answer."""
    if (first.status, first.body) != (again.status, again.body):
        return "status or body differ"
    names = {name for name, _ in first.headers + again.headers} - OF_ONE_TIME - MARKS
    names = {name for name in names if not name.startswith("onlyonce-")}
    changed = sorted(name for name in names if first.values(name) != again.values(name))
    seen = f"headers that differ: {', '.join(changed)}" if changed else "the same headers"
    if not first.values("x-work-note"):
        seen = "headers of the work do not reach the caller"
    marked = any(again.values(mark) for mark in MARKS)
    return f"{seen}; {'marked as a replay' if marked else 'no mark of a replay'}"
