"""Keys that survive a crash: one for each action, kept before the first byte is sent."""

from __future__ import annotations

import json
import os
import time
import uuid
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Mapping, Optional, TypeVar, Union

from . import _window as window_rule
from ._errors import ActionReused, KeyPresent, KeysError
from ._folder import Entry, KeyFolder, Note, Taken, check_action, fingerprint
from ._time import Span, parse, seconds, text

C = TypeVar("C")

HEADER = "Idempotency-Key"

# Worth another attempt, so not the server's last word.
_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})


class ActionKeys:
    """One key for each action of yours, so that a restarted process sends the same one.

    ::

        keys = onlyonce.ActionKeys("/var/lib/myapp/keys")
        openai = OpenAI(base_url="http://127.0.0.1:8787/v1")
        keys.client(openai, "order-17/summary").chat.completions.create(...)

    Name what is to happen once, and not the attempt. The key is on disk, synced, before the first byte is sent; the
    folder may be shared with `onlyonce call`, Node, and any number of processes of this machine.
    """

    def __init__(
        self,
        folder: Union[None, KeyFolder, str, os.PathLike[str]] = None,
        *,
        window: Span = "24h",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Keys in `folder`; else in ``$ONLYONCE_KEYS``, else where `onlyonce call` keeps them.

        Args:
            folder: The folder, which is made where it is missing.
            window: How long the server keeps a key, where it does not say so itself (`Onlyonce-Expires`).
            clock: Seconds since 1970, for tests.

        Raises:
            KeysError: The folder cannot be made.
            ValueError: `window` is no span of time.
        """
        self.folder = folder if isinstance(folder, KeyFolder) else KeyFolder(folder or _default_folder())
        self._window = timedelta(seconds=seconds(window))
        self._clock = clock

    def client(self, client: C, action: str) -> C:
        """`client`, of the official OpenAI, Anthropic or Stripe SDK, for the one request of `action`.

        The SDK may retry as it likes: each attempt carries the key of the action, and none is sent once the window may
        be over. Blocking and asyncio clients are both taken; they share their connections with `client`.

        Raises:
            WindowOver, ClockWentBack, KeysError: Here already, or by the call.
            ActionReused: By the call: the action was used for another request.
            TypeError: It is no client that is known.
            ValueError: `action` names none.
        """
        from ._sdks import with_action

        return with_action(client, self.call(action))

    def call(self, action: str) -> ActionCall:
        """One call of `action`, for any HTTP library: see `ActionCall`.

        Raises:
            WindowOver, ClockWentBack, KeysError
            ValueError: `action` names none.
        """
        call = ActionCall(self, check_action(action))
        kept = self.folder.look(action)
        if kept is not None:
            self._check(action, kept)
        return call

    def forget(self, action: str) -> bool:
        """Forgets `action`, and says whether it was known. From here on it is a new action, with a new key.

        Call this once your own records say that the action is done, and never before.

        Raises:
            KeysError
        """
        return self.folder.forget(action)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), timezone.utc)

    def _check(self, action: str, taken: Taken) -> None:
        window_rule.check(action, taken, self._window, self._now())


class ActionCall:
    """One call of an action: its key for each attempt, and a note of what the server said."""

    def __init__(self, keys: ActionKeys, action: str) -> None:
        self._keys = keys
        self._taken: Optional[Taken] = None
        self.action = action

    def key(self, method: str, url: str, body: bytes = b"") -> str:
        """The key for an attempt with this very request. It is durable when this returns.

        Ask before each attempt: a key is not sent once the server may have forgotten it.

        Raises:
            ActionReused, WindowOver, ClockWentBack, KeysError
        """
        keys = self._keys
        of = fingerprint(method, url, body)
        # To the millisecond, as it is kept.
        now = keys._now()
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)
        taken = keys.folder.take(self.action, Entry(str(uuid.uuid4()), of, now))
        if taken.entry.fingerprint != of:
            raise ActionReused(
                f"{self.action} was used for another request at {text(taken.entry.made_at)}: its method, URL or body "
                "differs.",
                "This call sent nothing. The first request is not changed by it.",
                "If this is another action, give it another name. If it is the same one, send the very same request "
                "as the first time.",
            )
        keys._check(self.action, taken)
        self._taken = taken
        return taken.entry.key

    def answered(self, status: int, headers: Mapping[str, str], problem: Optional[bytes] = None) -> None:
        """Notes what the server said, where that counts: a final answer, or that the outcome is unknown.

        `problem` is the body where it is a problem document. What cannot be noted changes nothing: the key is kept.
        """
        if self._taken is None:
            return
        answered = _last_word(status, headers, problem)
        if answered is None:
            return
        before = self._taken.note
        said = None if answered == _UNKNOWN else answered
        note = Note(self._keys._now(), said, _expires(headers))
        if before is not None:
            is_known = before.answered == note.answered and note.expires_at in (None, before.expires_at)
            # What is done stays done, whatever a later call is told, such as one with a wrong password.
            if is_known or (before.is_success and not note.is_success):
                return
        try:
            self._keys.folder.note(self.action, self._taken.entry.key, note)
        except KeysError:
            return
        self._taken = Taken(self._taken.entry, self._taken.is_new, note)


_UNKNOWN = 0


def _last_word(status: int, headers: Mapping[str, str], problem: Optional[bytes]) -> Optional[int]:
    """The status of a final answer, 0 where the outcome is unknown, None where another attempt may tell more."""
    if is_problem(headers) and _kind(problem).endswith("/problems/outcome-unknown"):
        return _UNKNOWN
    recorded = headers.get("onlyonce-status") in ("executed", "replayed", "joined")
    told = {headers.get(name) for name in ("x-should-retry", "stripe-should-retry")}
    if status < 400 or recorded or "false" in told:
        return status
    if "true" in told:
        return None
    if headers.get("idempotent-replayed") == "true":
        return status
    return None if status in _RETRIED else status


def is_problem(headers: Mapping[str, str]) -> bool:
    """Whether a body under these headers says that it is a problem document."""
    kind = (headers.get("content-type") or "").partition(";")[0].strip().lower()
    return kind == "application/problem+json"


def _kind(problem: Optional[bytes]) -> str:
    try:
        document: Any = json.loads(problem or b"")
    except ValueError:
        return ""
    return str(document.get("type")) if isinstance(document, dict) else ""


def _expires(headers: Mapping[str, str]) -> Optional[datetime]:
    try:
        return parse(headers.get("onlyonce-expires") or "")
    except ValueError:
        return None


def refuse_other_key(action: str, headers: Mapping[str, str]) -> None:
    """Raises KeyPresent where a request of `action` has a key of its own."""
    if headers.get(HEADER) is not None:
        raise KeyPresent(
            f"The request for {action} has an {HEADER} of its own.",
            "This call sent nothing.",
            f"Take out the {HEADER}, or the action.",
        )


def _default_folder() -> Path:
    if os.environ.get("ONLYONCE_KEYS"):
        return Path(os.environ["ONLYONCE_KEYS"])
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local/state") / "onlyonce/keys"
