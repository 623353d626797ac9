"""What can go wrong, each with what happened, what it means and what to do next."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Dict, Optional


class OnlyonceError(Exception):
    """Any error of this package. Printed, it is three sentences: what happened, what that means, what to do."""

    def __init__(self, happened: str, means: str, next: str) -> None:
        super().__init__(f"{happened} {means} {next}")
        self.happened = happened
        """What happened."""
        self.means = means
        """What it means: whether anything ran, and may run."""
        self.next = next
        """What to do."""


class DidNotRun(Exception):
    """Raise it in your own code to say that nothing ran: the key is then free for another try.

    Only where you know it. After anything that may have run, let another exception through: its outcome is
    unknown then, and nobody runs it again unasked. It is about the innermost operation alone: one around that may have
    done other things, and is unknown unless it catches this and raises one of its own.
    """


class Unknown(OnlyonceError):
    """It may have run, once at most, and nobody can say."""

    def __init__(self, happened: str, means: str, next: str, operation: Optional[str] = None) -> None:
        super().__init__(happened, means, next)
        self.operation = operation
        """The operation to settle."""


class KeyReused(OnlyonceError):
    """The key was used with another input. Nothing ran."""


class ToolCallChanged(KeyReused):
    """A tool call was made before, under the same id and with other arguments. Nothing ran."""


class BadToolCall(OnlyonceError):
    """A model asked for something that cannot be done: no such tool, or arguments that do not fit. Nothing ran, and no
    operation was begun, so the same call may come again."""

    def __init__(self, happened: str, means: str, next: str, answer: Dict[str, Any]) -> None:
        super().__init__(happened, means, next)
        self.answer = answer
        """The message or block that tells the model so."""


class InFlight(OnlyonceError):
    """Somebody else executes it, and did not finish in the time that was waited. Nothing ran here."""

    def __init__(self, happened: str, means: str, next: str, operation: Optional[str] = None) -> None:
        super().__init__(happened, means, next)
        self.operation = operation


class NothingRan(OnlyonceError):
    """Whoever executed it, while this call waited, said that nothing ran. Nothing ran here either."""


class LeaseOver(OnlyonceError):
    """The claim had passed before the work began, so it was not begun here."""


class ClaimLost(OnlyonceError):
    """Another claim counts by now: nothing that this worker says changes anything."""


class AlreadySettled(OnlyonceError):
    """The operation is settled in another way, or its lease has passed."""


class NoSuchOperation(OnlyonceError):
    """There is no such operation, or not any more."""


class ResultTooLarge(OnlyonceError):
    """The result is over the gateway's limit. The claim stands."""


class NotRecorded(OnlyonceError):
    """The work ran here, and its result could not be recorded."""

    def __init__(self, happened: str, means: str, next: str, value: Any) -> None:
        super().__init__(happened, means, next)
        self.value = value
        """What the work returned."""


class Unavailable(OnlyonceError):
    """No answer, or one to come back for, after all retries."""


class Refused(OnlyonceError):
    """The gateway does not take the request as it is."""

    def __init__(self, happened: str, means: str, next: str, status: int) -> None:
        super().__init__(happened, means, next)
        self.status = status
        """The HTTP status."""


class KeysError(OnlyonceError):
    """The folder of keys cannot be used. Nothing was sent, and no key was made anew."""


class ActionReused(OnlyonceError):
    """The action belongs to another request: its method, URL or body differs. Nothing was sent."""


class KeyPresent(OnlyonceError):
    """The request has a key of its own. Nothing was sent."""


class WindowOver(OnlyonceError):
    """The server may have forgotten the key, so that it would run the action anew. Nothing was sent."""

    def __init__(self, happened: str, means: str, next: str, ended_at: datetime) -> None:
        super().__init__(happened, means, next)
        self.ended_at = ended_at
        """The end of the window."""


class ClockWentBack(OnlyonceError):
    """The clock stands before a moment that is past, so nobody can tell whether the window is over."""
