"""One operation from its begin to its end: claimed, kept by heartbeats, settled whatever happens."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Awaitable, Callable, Mapping, Optional, Set, Tuple, Type, TypeVar, Union

from . import _errors as errors
from . import _flows as flows
from ._flows import Begin, to_json
from ._protocol import Claim, Flow, Replay, Retry
from ._time import Span

T = TypeVar("T")
Run = Callable[[Flow[Any]], Any]
RunAsync = Callable[[Flow[Any]], Awaitable[Any]]
_O = TypeVar("_O", bound="_Base")

_log = logging.getLogger("onlyonce")

# What a heartbeat says of a claim that does not count any more.
_LOST: Tuple[Type[errors.OnlyonceError], ...] = (errors.ClaimLost, errors.AlreadySettled, errors.NoSuchOperation)

_UNHEARD: Tuple[Type[errors.OnlyonceError], ...] = (errors.Unavailable, *_LOST)

# Of which operation an exception has said that it did not run.
_SAID_OF = "_onlyonce_said_of"

_current: contextvars.ContextVar[_Base] = contextvars.ContextVar("onlyonce_operation")


def current() -> Union[Operation, AsyncOperation]:
    """The operation that is being executed here: inside of a ``@once`` function, a tool, or a ``with`` block.

    Raises:
        LookupError: There is none.
    """
    operation = _current.get()
    assert isinstance(operation, (Operation, AsyncOperation))
    return operation


@dataclass(frozen=True)
class How:
    """How an operation is waited for and settled."""

    wait: float
    window: Optional[Span]
    did_not_run: Tuple[Type[BaseException], ...]
    retry: Retry


class _Base:
    """What both kinds of operations know."""

    def __init__(self, asked: Begin, how: How) -> None:
        self._asked = asked
        self._wait = how.wait
        self._window = how.window
        self._retry = how.retry
        self._did_not_run: Tuple[Type[BaseException], ...] = (errors.DidNotRun, *how.did_not_run)
        self._claim: Optional[Claim] = None
        self._began = False
        self._settled = False
        self._has_result = False
        self._token: Optional[contextvars.Token[_Base]] = None
        self.id: str = ""
        """The operation's id: pass it on as the key of what you call, where that honours keys."""
        self.attempt = 0
        """Which attempt of the operation this is, from 1."""
        self.replayed = False
        """Whether it was done before: `result` is there, and nothing is to be done."""
        self.result: Any = None
        """The result: what was recorded, or what `complete` was given."""
        self.lost: Optional[errors.OnlyonceError] = None
        """Why the claim does not count any more, once a heartbeat was told so."""

    @property
    def key(self) -> str:
        """Its key."""
        return self._asked.key

    def check(self) -> None:
        """Raises `lost`, where the claim does not count any more: call it before each further step of long work."""
        if self.lost is not None:
            raise self.lost

    def _enter(self: _O, found: Union[Claim, Replay]) -> _O:
        self.id = found.operation
        self.attempt = found.attempt
        if isinstance(found, Replay):
            self.replayed = True
            self.result = found.result
        else:
            self._claim = found
        self._token = _current.set(self)
        return self

    def _begin_once(self) -> None:
        if self._began:
            raise RuntimeError("this operation was begun before; make another one for another attempt")
        self._began = True

    def _open(self) -> Claim:
        if self._claim is None:
            raise RuntimeError(f"there is nothing to settle: {self.key} was done before, or not begun")
        if self._settled:
            raise RuntimeError(f"{self.key} is settled already")
        return self._claim

    def _completing(self) -> Claim:
        """The claim, now that there is a result: from here on nothing says any more that nothing ran."""
        claim = self._open()
        self._has_result = True
        return claim

    def _says_that_it_did_not_run(self, error: Optional[BaseException]) -> bool:
        # An error of this package is about recording, or about another operation.
        is_ours = isinstance(error, errors.OnlyonceError)
        if self._has_result or is_ours or not isinstance(error, self._did_not_run):
            return False
        # Once it is said of one operation, it says nothing of one around it.
        return not hasattr(error, _SAID_OF)

    def _leave(self) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None

    def _ending(self, error: Optional[BaseException]) -> Optional[Flow[Any]]:
        """What is still to be said when the block is left."""
        if self._claim is None or self._settled:
            return None
        self._settled = True
        is_unheard = isinstance(error, errors.NotRecorded) and isinstance(error.__cause__, _UNHEARD)
        if is_unheard or self.lost is not None:
            # There is nobody to tell it to: the lease has ended it, or will.
            return None
        if self._says_that_it_did_not_run(error):
            setattr(error, _SAID_OF, self.id)
            return flows.release(self._claim, self._retry)
        if error is None:
            _log.warning("%s was left without complete(): its outcome is unknown now", self.key)
        return flows.fail(self._claim, None, self._retry)

    def _unsaid(self, error: errors.OnlyonceError) -> None:
        # The error that ended the work counts for more; the lease ends this one.
        _log.warning("%s could not be settled, its outcome is unknown after its lease: %s", self.key, error)


class Operation(_Base):
    """An operation for ``with``. Made by `Client.operation`.

    Entering begins it: it raises Unknown, KeyReused, InFlight, NothingRan, LeaseOver, Refused or Unavailable. Where
    `replayed` is false it is yours to execute and `complete`. Leaving the block without that says that its outcome is
    unknown, and by `DidNotRun` that nothing ran.
    """

    def __init__(self, run: Run, asked: Begin, how: How) -> None:
        super().__init__(asked, how)
        self._run = run
        self._stop = threading.Event()
        self._beats: Optional[threading.Thread] = None

    def __enter__(self) -> Operation:
        self._begin_once()
        self._enter(self._run(flows.acquire(self._asked, self._wait, self._retry)))
        if self._claim is not None:
            self._beats = threading.Thread(
                target=self._beat, args=(self._claim,), name=f"onlyonce {self.key}", daemon=True
            )
            self._beats.start()
        return self

    def complete(self, result: Any, *, metered: Optional[Mapping[str, Any]] = None) -> None:
        """Records `result`. Raises as `Client.complete` does; after ResultTooLarge try a shorter one."""
        self._run(flows.complete(self._completing(), result, self._window, metered, self._retry))
        self._end(result)

    def release(self) -> None:
        """Says that nothing ran. Raises as `Client.release` does."""
        self._run(flows.release(self._open(), self._retry))
        self._end()

    def fail(self, *, metered: Optional[Mapping[str, Any]] = None) -> None:
        """Says that nobody can say whether it ran. Raises as `Client.fail` does."""
        self._run(flows.fail(self._open(), metered, self._retry))
        self._end()

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._leave()
        self._stop.set()
        ending = self._ending(error)
        if ending is not None:
            try:
                self._run(ending)
            except errors.OnlyonceError as unsaid:
                self._unsaid(unsaid)

    def _end(self, result: Any = None) -> None:
        self._settled = True
        # What every other call gets: what JSON makes of it.
        self.result = json.loads(to_json(result))
        self._stop.set()

    def _beat(self, claim: Claim) -> None:
        while not self._stop.wait(claim.lease / 3):
            try:
                self._run(flows.heartbeat(claim, self._retry))
            except _LOST as error:
                if not self._stop.is_set():
                    self.lost = error
                return
            except errors.OnlyonceError:
                # The gateway is away: the next one may be heard, while the lease lasts.
                continue


# What is still to be given back; a loop keeps no tasks by itself.
_giving_back: Set[asyncio.Future[None]] = set()


class AsyncOperation(_Base):
    """An operation for ``async with``. Made by `AsyncClient.operation`; the same as `Operation`."""

    def __init__(self, run: RunAsync, asked: Begin, how: How) -> None:
        super().__init__(asked, how)
        self._run = run
        self._beats: Optional[asyncio.Task[None]] = None
        self._is_gone = False

    async def __aenter__(self) -> AsyncOperation:
        self._begin_once()
        begins = flows.acquire(self._asked, self._wait, self._retry, is_gone=lambda: self._is_gone)
        beginning = asyncio.ensure_future(self._run(begins))
        try:
            # A request that is on its way may be granted, whoever has given up by then.
            found = await asyncio.shield(beginning)
        except asyncio.CancelledError:
            self._is_gone = True
            giving_back = asyncio.ensure_future(self._give_back(beginning))
            _giving_back.add(giving_back)
            giving_back.add_done_callback(_giving_back.discard)
            raise
        self._enter(found)
        if self._claim is not None:
            self._beats = asyncio.ensure_future(self._beat(self._claim))
        return self

    async def _give_back(self, beginning: asyncio.Future[Union[Claim, Replay]]) -> None:
        """Nothing runs for whoever has given up, so a claim that comes is released."""
        try:
            found = await beginning
        except Exception:
            return
        if isinstance(found, Claim):
            try:
                await self._run(flows.release(found, self._retry))
            except errors.OnlyonceError as unsaid:
                self._unsaid(unsaid)

    async def complete(self, result: Any, *, metered: Optional[Mapping[str, Any]] = None) -> None:
        """See `Operation.complete`."""
        await self._run(flows.complete(self._completing(), result, self._window, metered, self._retry))
        self._end(result)

    async def release(self) -> None:
        """See `Operation.release`."""
        await self._run(flows.release(self._open(), self._retry))
        self._end()

    async def fail(self, *, metered: Optional[Mapping[str, Any]] = None) -> None:
        """See `Operation.fail`."""
        await self._run(flows.fail(self._open(), metered, self._retry))
        self._end()

    async def __aexit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._leave()
        self._stop()
        ending = self._ending(error)
        if ending is not None:
            try:
                # A task that is cancelled still says what became of its work.
                await asyncio.shield(asyncio.ensure_future(self._run(ending)))
            except errors.OnlyonceError as unsaid:
                self._unsaid(unsaid)

    def _end(self, result: Any = None) -> None:
        self._settled = True
        # What every other call gets: what JSON makes of it.
        self.result = json.loads(to_json(result))
        self._stop()

    def _stop(self) -> None:
        if self._beats is not None:
            self._beats.cancel()

    async def _beat(self, claim: Claim) -> None:
        while True:
            await asyncio.sleep(claim.lease / 3)
            try:
                await self._run(flows.heartbeat(claim, self._retry))
            except _LOST as error:
                self.lost = error
                return
            except errors.OnlyonceError:
                continue
