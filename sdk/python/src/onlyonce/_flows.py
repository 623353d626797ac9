"""What a worker does with the operations API, as flows without I/O."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass
from typing import Any, Callable, Mapping, Optional, Union
from urllib.parse import quote

from . import _errors as errors
from ._protocol import (
    Claim,
    Decision,
    Flow,
    Freed,
    Pause,
    Replay,
    Request,
    Response,
    Retry,
    Running,
    Work,
    decision,
    exchange,
    work,
)
from ._time import Span, seconds, span_text

Monotonic = Callable[[], float]

# The longest that one request waits; the gateway has a limit of its own (`limits.work_wait`).
_WAIT_AT_ONCE = 60.0
# Where the answer to "wait" came sooner than this, the next one is not asked for at once.
_TOO_SOON = 0.05


@dataclass(frozen=True)
class Begin:
    """What is to be begun."""

    key: str
    input: Any = None
    namespace: Optional[str] = None
    tenant: Optional[str] = None
    name: Optional[str] = None
    lease: Span = 30.0
    """How long the worker is believed to be at it without a heartbeat. Always said, so that it is known here."""
    on_unknown: str = "report"

    def body(self, nonce: str, wait: float) -> bytes:
        """As JSON.

        Raises:
            TypeError, ValueError: The input is not JSON.
        """
        said: dict[str, Any] = {
            "key": self.key,
            "nonce": nonce,
            "on_unknown": self.on_unknown,
            "lease": span_text(self.lease),
        }
        for name in ("input", "namespace", "tenant", "name"):
            if getattr(self, name) is not None:
                said[name] = getattr(self, name)
        if wait > 0:
            said["wait"] = span_text(wait)
        return to_json(said)


def to_json(value: Any) -> bytes:
    """`value` as JSON that every reader agrees on: no NaN.

    Raises:
        TypeError, ValueError: It is not JSON.
    """
    try:
        return json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def begin(asked: Begin, wait: float, nonce: str, retry: Retry) -> Flow[Decision]:
    """Begins, with the same nonce in every attempt: a claim whose answer was lost is found again."""
    body = asked.body(nonce, wait)
    response = yield from exchange(Request("POST", "/v1/work", body, retry.timeout + wait), retry)
    return decision(response, seconds(asked.lease))


def acquire(
    asked: Begin,
    wait: float,
    retry: Retry,
    now: Monotonic = time.monotonic,
    is_gone: Callable[[], bool] = lambda: False,
) -> Flow[Union[Claim, Replay]]:
    """Begins, and waits up to `wait` seconds where somebody else executes it, or until whoever asked `is_gone`.

    Raises:
        InFlight: It was not finished in that time.
        NothingRan: Whoever executed it did nothing.
        LeaseOver: The claim had passed before it was known here.
    """
    until = now() + wait
    reruns = asked.on_unknown == "rerun"
    while True:
        began = now()
        left = max(0.0, min(until - began, _WAIT_AT_ONCE))
        try:
            found = yield from begin(asked, left, uuid.uuid4().hex, retry)
        except errors.Unknown:
            # Whoever was waited for died: who waited shares that, and is asked once more whether it is to run again.
            if not reruns:
                raise
            reruns = False
            continue
        if isinstance(found, Replay):
            return found
        if isinstance(found, Claim):
            # By what is left of the lease since the first byte was sent, whatever the calendars say.
            if now() - began > found.lease / 3:
                yield from _renew_before_work(found, retry)
            return found
        if isinstance(found, Freed):
            raise errors.NothingRan(
                f"Whoever executed {asked.key} released it.",
                "Nothing ran, there or here.",
                "Call again if it is still to be done.",
            )
        if now() >= until or is_gone():
            raise _in_flight(asked, found, wait)
        if now() - began < _TOO_SOON:
            yield Pause(min(retry.backoff * retry.random(), max(0.0, until - now())))


def _renew_before_work(claim: Claim, retry: Retry) -> Flow[None]:
    try:
        yield from heartbeat(claim, retry)
    except (errors.ClaimLost, errors.AlreadySettled, errors.NoSuchOperation) as error:
        raise errors.LeaseOver(
            f"The lease of {claim.operation} had passed before the answer of the gateway was here.",
            "It was not begun here. Others have taken this worker for dead, and may have begun.",
            "Call again: the gateway says what it is by then. A longer lease helps on a slow network.",
        ) from error


def _in_flight(asked: Begin, found: Running, wait: float) -> errors.InFlight:
    return errors.InFlight(
        f"Somebody else executes {asked.key}, and was not done within {wait:g} s.",
        "Nothing ran here.",
        "Call again later: the result is there as soon as it is done.",
        found.operation,
    )


def heartbeat(claim: Claim, retry: Retry) -> Flow[Work]:
    """Says that the worker is still at it: the claim is believed for another lease."""
    return _settle(claim, "heartbeat", {"lease": span_text(claim.lease)}, retry)


def complete(
    claim: Claim, result: Any, window: Optional[Span], metered: Optional[Mapping[str, Any]], retry: Retry
) -> Flow[Work]:
    """Records the result: everybody who comes with the key gets it for the window."""
    # Also where it is None, which is a result.
    said = {"window": None if window is None else span_text(window), "metered": metered}
    return _settle(claim, "complete", said, retry, result=result)


def release(claim: Claim, retry: Retry) -> Flow[Work]:
    """Says that nothing ran: the key is free."""
    return _settle(claim, "release", {}, retry)


def fail(claim: Claim, metered: Optional[Mapping[str, Any]], retry: Retry) -> Flow[Work]:
    """Says that nobody can say whether it ran."""
    return _settle(claim, "fail", {"metered": metered}, retry)


def _settle(claim: Claim, word: str, said: Mapping[str, Any], retry: Retry, **always: Any) -> Flow[Work]:
    given = {name: value for name, value in said.items() if value is not None}
    body = to_json({"claim": claim.secret, **given, **always})
    return _of_work(claim.operation, f"/{word}", body, 0.0, retry)


def look(operation: str, wait: float, retry: Retry) -> Flow[Work]:
    """The operation as it is, or as it is at its end where that comes within `wait` seconds."""
    query = f"?wait={span_text(wait)}" if wait > 0 else ""
    return _of_work(operation, query, None, wait, retry)


def wait_for(operation: str, wait: float, retry: Retry, now: Monotonic = time.monotonic) -> Flow[Work]:
    """Waits for the operation's end, up to `wait` seconds, and returns it as it is then."""
    until = now() + wait
    while True:
        began = now()
        found = yield from look(operation, max(0.0, min(until - began, _WAIT_AT_ONCE)), retry)
        if found.state != "in_flight" or now() >= until:
            return found
        if now() - began < _TOO_SOON:
            yield Pause(min(retry.backoff * retry.random(), max(0.0, until - now())))


def _of_work(operation: str, path: str, body: Optional[bytes], wait: float, retry: Retry) -> Flow[Work]:
    method = "GET" if body is None else "POST"
    request = Request(method, f"/v1/work/{quote(operation, safe='')}{path}", body, retry.timeout + wait)
    response: Response = yield from exchange(request, retry)
    return work(response)
