"""The operations API without I/O: what is sent, what the answers mean, when to try again.

Each operation is a generator that yields what it needs done, a `Request` to send or a `Pause` to make, and returns
what came of it. `_sync` and `_async` drive the same generators.
"""

from __future__ import annotations

import json
import random as _random
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Callable, Dict, Generator, Mapping, Optional, TypeVar, Union

from . import _errors as errors
from ._time import parse

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A request to the control listener."""

    method: str
    path: str
    body: Optional[bytes]
    patience: float
    """How long its answer may take, in seconds."""


@dataclass(frozen=True)
class Response:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@dataclass(frozen=True)
class Pause:
    """A wait of so many seconds."""

    seconds: float


class TransportError(Exception):
    """No whole answer came: whether the request arrived is not known."""


Flow = Generator[Union[Request, Pause], Optional[Response], T]


@dataclass(frozen=True)
class Retry:
    """How often and how long a request to the gateway is tried. Every one of them may be sent twice."""

    retries: int = 5
    """Attempts after the first one."""
    backoff: float = 0.5
    """The longest wait before the first retry, in seconds; it doubles with each further one (full jitter)."""
    backoff_most: float = 8.0
    """The longest wait before any retry, in seconds, where the gateway asks for no longer one."""
    timeout: float = 10.0
    """For one attempt, in seconds, beside what it asks the gateway to wait."""
    random: Callable[[], float] = _random.random
    """A number from 0 to 1: it spreads the waits."""

    def wait(self, retries: int, response: Optional[Response]) -> float:
        """How long to wait before the next retry, in seconds, after so many of them."""
        asked = _retry_after(response)
        if asked is not None:
            return asked + self.backoff * self.random()
        return min(self.backoff * 2.0**retries, self.backoff_most) * self.random()


# Nothing was claimed or settled, or it can be said again: the gateway is away, busy or full.
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504, 507})


def exchange(request: Request, retry: Retry) -> Flow[Response]:
    """Sends `request` until there is an answer that counts.

    Raises:
        Unavailable: There was none.
    """
    retries = 0
    while True:
        response: Optional[Response] = None
        try:
            response = yield request
            assert response is not None
            if response.status not in _RETRIED:
                return response
            why = said(response).detail
        except TransportError as error:
            why = f"the gateway gave no answer: {error}"
        if retries >= retry.retries:
            raise errors.Unavailable(
                sentence(why),
                "After all retries it is not known whether the last word arrived.",
                "Look at the gateway, and call again: with the same nonce or claim nothing is done twice.",
            )
        yield Pause(retry.wait(retries, response))
        retries += 1


def _retry_after(response: Optional[Response]) -> Optional[float]:
    text = "" if response is None else response.headers.get("retry-after", "")
    return float(text) if text.isdigit() and int(text) > 0 else None


@dataclass(frozen=True)
class Said:
    """What the gateway says where it refuses (RFC 9457)."""

    kind: str
    """The problem's name, like ``key-reused``; empty where it has none."""
    detail: str
    next: str
    operation: Optional[str]


def said(response: Response) -> Said:
    """Reads a refusal. What cannot be read still has its status."""
    try:
        document: Any = json.loads(response.body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        document = {}

    def word(name: str) -> str:
        return str(document.get(name) or "")

    return Said(
        kind=word("type").rpartition("/problems/")[2] if "/problems/" in word("type") else "",
        detail=word("detail") or f"the gateway answered {response.status}",
        next=word("next"),
        operation=word("operation") or None,
    )


def refusal(response: Response) -> errors.OnlyonceError:
    """The error for an answer that is none of the good ones."""
    told = said(response)
    happened = sentence(told.detail)
    next = sentence(told.next) if told.next else "Look at the gateway's log."
    if told.kind == "outcome-unknown":
        return errors.Unknown(
            happened,
            "It may have run, once at most. Nothing runs under this key unasked.",
            "Find out whether it ran; then onlyonce keys complete or onlyonce keys release settles "
            f"{told.operation or 'it'}. on_unknown='rerun' runs it again, twice perhaps.",
            told.operation,
        )
    if told.kind == "key-reused":
        return errors.KeyReused(
            "The key was used before, with another input.",
            "Nothing ran. What is recorded under the key is not changed.",
            "Use another key for another action; a retry has the very same input.",
        )
    if told.kind == "claim-lost":
        return errors.ClaimLost(
            happened,
            "Nothing that this worker says of it changes anything.",
            "Stop the work if it still runs, and look at what the operation is now.",
        )
    if told.kind == "already-settled":
        return errors.AlreadySettled(
            happened,
            "What is settled stays. A late result is still taken while its outcome is unknown.",
            "Complete it if you have the result; else leave it.",
        )
    if response.status == 404:
        return errors.NoSuchOperation(happened, "Its record is gone, or never was.", next)
    if response.status == 413:
        return errors.ResultTooLarge(happened, "The claim stands.", next)
    return errors.Refused(happened, "Nothing was done.", next, response.status)


def sentence(text: str) -> str:
    """`text` with a capital at its start and a full stop at its end."""
    text = text.strip()
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


@dataclass(frozen=True)
class Claim:
    """It is yours, durably: the right to execute an operation, and the duty to settle it."""

    operation: str
    attempt: int
    epoch: int
    """Higher than that of every claim of this operation before it: what can compare refuses a lower one."""
    secret: str = field(repr=False)
    """Who has it settles the operation."""
    lease: float
    """How long it is believed without a heartbeat, in seconds."""
    lease_until: datetime
    """When that ends, on the gateway's clock."""


@dataclass(frozen=True)
class Replay:
    """It is done: this is its result."""

    operation: str
    attempt: int
    epoch: int
    """That of the claim under which it was done."""
    expires_at: Optional[datetime]
    result: Any
    joined: bool
    """Whether it was finished while this call waited."""


@dataclass(frozen=True)
class Running:
    """Somebody executes it."""

    operation: Optional[str]


@dataclass(frozen=True)
class Freed:
    """Whoever executed it, while this call waited, said that nothing ran."""

    operation: str


Decision = Union[Claim, Replay, Running, Freed]


def decision(response: Response, lease: float) -> Decision:
    """What `POST /v1/work`, which asked for so long a `lease`, answered; raises what it refused."""
    body = _body(response)
    kind = body.get("decision")
    if kind == "execute":
        until = parse(body["lease_until"])
        return Claim(body["operation"], body["attempt"], body["epoch"], body["claim"], lease, until)
    if kind in ("replay", "join"):
        end = _moment(body, "expires_at")
        return Replay(body["operation"], body["attempt"], body["epoch"], end, body.get("result"), kind == "join")
    if kind == "in_flight":
        return Running(body.get("operation"))
    if kind == "released":
        return Freed(body["operation"])
    raise _unreadable(response)


@dataclass(frozen=True)
class Work:
    """An operation as it stands."""

    operation: str
    tenant: str
    namespace: str
    key: str
    name: str
    state: str
    """``in_flight``, ``completed``, ``unknown`` or ``released``."""
    epoch: int
    """That of the claim that counts."""
    claimed_at: datetime
    lease_until: Optional[datetime]
    completed_at: Optional[datetime]
    expires_at: Optional[datetime]
    reason: Optional[str]
    """Why it is unknown or released."""
    result: Any
    """Its result, where it is completed and was asked for; a result can be None itself."""


def work(response: Response) -> Work:
    """What every other request answers; raises what it refused."""
    body = _body(response)
    try:
        return Work(
            **{name: body[name] for name in ("operation", "tenant", "namespace", "key", "name", "state", "epoch")},
            claimed_at=parse(body["claimed_at"]),
            lease_until=_moment(body, "lease_until"),
            completed_at=_moment(body, "completed_at"),
            expires_at=_moment(body, "expires_at"),
            reason=body.get("reason"),
            result=body.get("result"),
        )
    except (KeyError, ValueError):
        raise _unreadable(response) from None


def _body(response: Response) -> Dict[str, Any]:
    if response.status != 200:
        raise refusal(response)
    try:
        body = json.loads(response.body)
    except ValueError:
        body = None
    except RecursionError:
        raise errors.Refused(
            "The result is nested too deep to be read here.",
            "It ran, and what is recorded stays.",
            "Read it elsewhere, as with `onlyonce keys show`, and have workers complete with flatter results.",
            response.status,
        ) from None
    if not isinstance(body, dict):
        raise _unreadable(response)
    return body


def _unreadable(response: Response) -> errors.Refused:
    return errors.Refused(
        "The answer is none of the operations API.",
        "It is not known whether anything was done.",
        "Look at the address: it is that of a gateway's control listener.",
        response.status,
    )


def _moment(body: Mapping[str, Any], name: str) -> Optional[datetime]:
    return parse(body[name]) if body.get(name) else None
