"""The clients of the operations API: one that blocks, and one for asyncio."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
import uuid
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional, Tuple, Type, TypeVar

from . import _flows as flows
from ._flows import Begin
from ._http import Address, send, send_async
from ._once import F, Key, OnceOptions, once
from ._operation import AsyncOperation, How, Operation
from ._protocol import Claim, Decision, Flow, Pause, Retry, TransportError, Work
from ._time import Span, seconds, window_text
from ._tools import AsyncTools, Tool, ToolOptions, Tools

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8788"


class _Base:
    """What both clients know: where the gateway is, and who they are to it."""

    def __init__(
        self,
        url: Optional[str] = None,
        *,
        token: Optional[str] = None,
        tenant: Optional[str] = None,
        namespace: Optional[str] = None,
        retry: Optional[Retry] = None,
        tls: Optional[ssl.SSLContext] = None,
    ) -> None:
        """A client of the control listener at `url`, else ``$ONLYONCE_CONTROL``, else http://127.0.0.1:8788.

        Args:
            url: The control listener, or the gateway where it has a route for workers, with the prefix of that.
            token: Its token with the right ``work``; else ``$ONLYONCE_CONTROL_TOKEN``.
            tenant: Whose the keys are; else what the token says.
            namespace: Where the keys are unique, within the tenant; else ``work``.
            retry: How often a request is tried. All are safe to send twice.
            tls: For https, in place of the system's certificates.

        Raises:
            ValueError: `url` is no URL.
        """
        self.url = url or os.environ.get("ONLYONCE_CONTROL") or DEFAULT_URL
        self.tenant = tenant
        self.namespace = namespace
        self.retry = retry or Retry()
        self._address = Address.of(self.url, tls)
        self._headers: Dict[str, str] = {"Accept": "application/json", "Content-Type": "application/json"}
        token = token if token is not None else os.environ.get("ONLYONCE_CONTROL_TOKEN")
        if token:
            self._headers["Authorization"] = f"Bearer {token}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def _begin(
        self,
        key: str,
        input: Any,
        namespace: Optional[str],
        name: Optional[str],
        lease: Span,
        on_unknown: str,
    ) -> Begin:
        return Begin(key, input, namespace or self.namespace, self.tenant, name, lease, on_unknown)


    def _how(self, wait: Span, window: Optional[Span], did_not_run: Tuple[Type[BaseException], ...]) -> How:
        # A window that the gateway would refuse is a mistake to be found before the work, and not at its end.
        return How(seconds(wait), None if window is None else window_text(window), did_not_run, self.retry)


class Client(_Base):
    """Runs side effects of your own once, by the operations API of a gateway. Any number of threads may share it.

    ::

        client = onlyonce.Client("http://127.0.0.1:8788")

        @client.once(key="report-{month}")
        def report(month: str) -> dict: ...
    """

    def begin(
        self,
        key: str,
        *,
        input: Any = None,
        wait: Span = 0,
        lease: Span = 30.0,
        on_unknown: str = "report",
        nonce: Optional[str] = None,
        namespace: Optional[str] = None,
        name: Optional[str] = None,
    ) -> Decision:
        """Asks for the right to execute `key`.

        Args:
            key: What this one action is called: 1 to 255 visible ASCII characters, the same over retries.
            input: JSON that says what is to be done. Another input under the same key is refused.
            wait: How long to wait where somebody else executes it.
            lease: How long this worker is believed to be at it without a heartbeat.
            on_unknown: ``"rerun"`` claims anew where nobody knows whether it ran: it may run twice then.
            nonce: Drawn for this one begin unless given. The same one finds a claim whose answer was lost.
            namespace: In place of the client's.
            name: What it is, for people who look at a list.

        Returns:
            `Claim`, `Replay`, `Running` or `Freed`.

        Raises:
            Unknown, KeyReused, Refused, Unavailable
        """
        asked = self._begin(key, input, namespace, name, lease, on_unknown)
        return self._run(flows.begin(asked, seconds(wait), nonce or uuid.uuid4().hex, self.retry))

    def heartbeat(self, claim: Claim) -> Work:
        """Says that the work goes on. Raises ClaimLost, AlreadySettled, NoSuchOperation, Unavailable."""
        return self._run(flows.heartbeat(claim, self.retry))

    def complete(
        self,
        claim: Claim,
        result: Any,
        *,
        window: Optional[Span] = None,
        metered: Optional[Mapping[str, Any]] = None,
    ) -> Work:
        """Records `result`, which everybody who comes with the key gets for `window` (24 h).

        Raises:
            ClaimLost, AlreadySettled, NoSuchOperation, ResultTooLarge, Refused, Unavailable
            TypeError, ValueError: The result is not JSON.
        """
        return self._run(flows.complete(claim, result, window, metered, self.retry))

    def release(self, claim: Claim) -> Work:
        """Says that nothing ran: the key is free. Raises as `heartbeat` does."""
        return self._run(flows.release(claim, self.retry))

    def fail(self, claim: Claim, *, metered: Optional[Mapping[str, Any]] = None) -> Work:
        """Says that nobody can say whether it ran. Raises as `heartbeat` does."""
        return self._run(flows.fail(claim, metered, self.retry))

    def get(self, operation: str) -> Work:
        """The operation as it is. Raises NoSuchOperation, Refused, Unavailable."""
        return self._run(flows.look(operation, 0.0, self.retry))

    def wait(self, operation: str, timeout: Span) -> Work:
        """Waits up to `timeout` for the operation's end, and returns it as it is then. Raises as `get` does."""
        return self._run(flows.wait_for(operation, seconds(timeout), self.retry))

    def operation(
        self,
        key: str,
        *,
        input: Any = None,
        wait: Span = 600.0,
        lease: Span = 30.0,
        window: Optional[Span] = None,
        on_unknown: str = "report",
        namespace: Optional[str] = None,
        name: Optional[str] = None,
        did_not_run: Tuple[Type[BaseException], ...] = (),
    ) -> Operation:
        """One operation as a context manager. The arguments are those of `begin`, and `window` of `complete`.

        `did_not_run` are exceptions that say that nothing ran, beside `DidNotRun`; errors of this package, and what
        comes after `complete`, never do.

        Raises:
            ValueError: `wait` or `window` is none that there can be.

        ::

            with client.operation("report-42", input={"month": "2026-10"}) as op:
                if not op.replayed:
                    op.complete(make_report())
            return op.result
        """
        asked = self._begin(key, input, namespace, name, lease, on_unknown)
        return Operation(self._run, asked, self._how(wait, window, did_not_run))

    def once(self, key: Key, **options: Unpack[OnceOptions]) -> Callable[[F], F]:
        """A decorator for functions that are to run once for each key: see `onlyonce.once`."""
        return once(key, client=self, **options)

    def tools(self, tools: Mapping[str, Tool], *, run: str, **options: Unpack[ToolOptions]) -> Tools:
        """The tools of one run of an agent, each call of which runs once: see `Tools`."""
        return Tools(self.operation, tools, run, options)

    def to_async(self) -> AsyncClient:
        """The same for asyncio."""
        other = AsyncClient.__new__(AsyncClient)
        other.__dict__.update(self.__dict__)
        return other

    def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = flow.send(None)
                    continue
                try:
                    response = send(self._address, self._headers, step)
                except TransportError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as done:
            result: T = done.value
            return result


class AsyncClient(_Base):
    """The same as `Client`, for asyncio."""

    async def begin(
        self,
        key: str,
        *,
        input: Any = None,
        wait: Span = 0,
        lease: Span = 30.0,
        on_unknown: str = "report",
        nonce: Optional[str] = None,
        namespace: Optional[str] = None,
        name: Optional[str] = None,
    ) -> Decision:
        """See `Client.begin`."""
        asked = self._begin(key, input, namespace, name, lease, on_unknown)
        return await self._run(flows.begin(asked, seconds(wait), nonce or uuid.uuid4().hex, self.retry))

    async def heartbeat(self, claim: Claim) -> Work:
        """See `Client.heartbeat`."""
        return await self._run(flows.heartbeat(claim, self.retry))

    async def complete(
        self,
        claim: Claim,
        result: Any,
        *,
        window: Optional[Span] = None,
        metered: Optional[Mapping[str, Any]] = None,
    ) -> Work:
        """See `Client.complete`."""
        return await self._run(flows.complete(claim, result, window, metered, self.retry))

    async def release(self, claim: Claim) -> Work:
        """See `Client.release`."""
        return await self._run(flows.release(claim, self.retry))

    async def fail(self, claim: Claim, *, metered: Optional[Mapping[str, Any]] = None) -> Work:
        """See `Client.fail`."""
        return await self._run(flows.fail(claim, metered, self.retry))

    async def get(self, operation: str) -> Work:
        """See `Client.get`."""
        return await self._run(flows.look(operation, 0.0, self.retry))

    async def wait(self, operation: str, timeout: Span) -> Work:
        """See `Client.wait`."""
        return await self._run(flows.wait_for(operation, seconds(timeout), self.retry))

    def operation(
        self,
        key: str,
        *,
        input: Any = None,
        wait: Span = 600.0,
        lease: Span = 30.0,
        window: Optional[Span] = None,
        on_unknown: str = "report",
        namespace: Optional[str] = None,
        name: Optional[str] = None,
        did_not_run: Tuple[Type[BaseException], ...] = (),
    ) -> AsyncOperation:
        """See `Client.operation`; for ``async with``."""
        asked = self._begin(key, input, namespace, name, lease, on_unknown)
        return AsyncOperation(self._run, asked, self._how(wait, window, did_not_run))

    def once(self, key: Key, **options: Unpack[OnceOptions]) -> Callable[[F], F]:
        """A decorator for coroutine functions that are to run once for each key: see `onlyonce.once`."""
        return once(key, client=self, **options)

    def tools(self, tools: Mapping[str, Tool], *, run: str, **options: Unpack[ToolOptions]) -> AsyncTools:
        """The tools of one run of an agent, each call of which runs once: see `AsyncTools`."""
        return AsyncTools(self.operation, tools, run, options)

    async def _run(self, flow: Flow[T]) -> T:
        try:
            step = next(flow)
            while True:
                if isinstance(step, Pause):
                    await asyncio.sleep(step.seconds)
                    step = flow.send(None)
                    continue
                try:
                    response = await send_async(self._address, self._headers, step)
                except TransportError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(response)
        except StopIteration as done:
            result: T = done.value
            return result


def shared() -> Client:
    """The client of functions that name none, made of the environment when it is first needed."""
    global _default
    if _default is None:
        _default = Client()
    return _default


_default: Optional[Client] = None
