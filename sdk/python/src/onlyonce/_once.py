"""The decorator: a function that runs once for each key."""

from __future__ import annotations

import functools
import inspect
import string
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple, Type, TypedDict, TypeVar, Union, cast

from . import _errors as errors
from ._flows import to_json
from ._operation import AsyncOperation, Operation
from ._time import Span, seconds, window_text

if TYPE_CHECKING:
    from ._client import AsyncClient, Client

F = TypeVar("F", bound=Callable[..., Any])

Key = Union[str, Callable[..., str]]
"""A format of the arguments, like ``"report-{month}"``, or a function of them."""


class OnceOptions(TypedDict, total=False):
    """What `once` takes beside the key: see there."""

    input: Optional[Callable[..., Any]]
    wait: Span
    lease: Span
    window: Optional[Span]
    on_unknown: str
    namespace: Optional[str]
    name: Optional[str]
    did_not_run: Tuple[Type[BaseException], ...]


def once(
    key: Key,
    *,
    client: Optional[Union[Client, AsyncClient]] = None,
    input: Optional[Callable[..., Any]] = None,
    wait: Span = 600.0,
    lease: Span = 30.0,
    window: Optional[Span] = None,
    on_unknown: str = "report",
    namespace: Optional[str] = None,
    name: Optional[str] = None,
    did_not_run: Tuple[Type[BaseException], ...] = (),
) -> Callable[[F], F]:
    """A function, or a coroutine function, that runs once for each key.

    The first call claims the key and runs, with heartbeats in the background, and its result is recorded. A later one
    does not run: it returns that result. One that comes while it runs waits, and gets the same. Where it raises, its
    outcome is unknown and nobody runs it again unasked; `DidNotRun` says that nothing ran, and frees the key.

    The result is JSON: every call, the first one too, returns what JSON makes of it (a tuple comes back as a list).

    Args:
        key: A format of the arguments, like ``"report-{month}"``, or a function of them.
        client: Whose gateway; else that of ``$ONLYONCE_CONTROL``. A coroutine function may have either kind.
        input: What makes two calls the same one: a function of the arguments. All of them unless said, which must be
            JSON then. The function's name is always a part of it.
        wait: How long to wait where somebody else executes it.
        lease: How long this process is believed to be at it without a heartbeat.
        window: How long the result answers, from its end; 24 h unless said.
        on_unknown: ``"rerun"`` runs it again where nobody knows whether it ran: twice perhaps.
        namespace: Where the key is unique, within the tenant.
        name: What it is called in lists and as a part of the input; the function's own name unless said.
        did_not_run: Exceptions that say that nothing ran, beside `DidNotRun`. Raised by the function itself: an error
            of this package never says so, nor anything that comes after its result.

    Raises, here already:
        ValueError: A span of time is none, or a constant key is one for all arguments.

    Raises, when the function is called:
        Unknown, KeyReused, InFlight, NothingRan, LeaseOver, Refused, Unavailable: nothing ran here.
        NotRecorded: it ran here, and its result is not recorded; the cause says why.
    """

    for span in (wait, lease):
        seconds(span)
    if window is not None:
        window_text(window)

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        called = name or function.__name__
        read = _Arguments(function, key, input, called)
        options: Dict[str, Any] = {
            "wait": wait,
            "lease": lease,
            "window": window,
            "on_unknown": on_unknown,
            "namespace": namespace,
            "name": called,
            "did_not_run": did_not_run,
        }
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                key, said = read(args, kwargs)
                async with _asynchronous(client).operation(key, input=said, **options) as operation:
                    if not operation.replayed:
                        await record_async(operation, await function(*args, **kwargs))
                return operation.result

            return run_async

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            key, said = read(args, kwargs)
            with _blocking(client).operation(key, input=said, **options) as operation:
                if not operation.replayed:
                    record(operation, function(*args, **kwargs))
            return operation.result

        return run

    return cast("Callable[[F], F]", wrap)


def record(operation: Operation, value: Any) -> None:
    """Completes `operation` with `value`; what cannot be recorded is not lost with the error.

    Raises:
        NotRecorded
    """
    try:
        operation.complete(value)
    except Exception as error:
        raise _not_recorded(operation.key, value, error) from error


async def record_async(operation: AsyncOperation, value: Any) -> None:
    """The same for asyncio."""
    try:
        await operation.complete(value)
    except Exception as error:
        raise _not_recorded(operation.key, value, error) from error


def _not_recorded(key: str, value: Any, error: Exception) -> Exception:
    if isinstance(error, (TypeError, ValueError)):
        why = f"Its result is not JSON: {error}."
        next = "Return what JSON can hold. Nobody is told of this result; settle it with onlyonce keys complete."
    elif isinstance(error, errors.OnlyonceError):
        why = str(error.happened)
        next = "Keep the value of this error where it belongs, and settle the operation with onlyonce keys complete."
    else:
        return error
    means = "It ran here. Others are told that its outcome is unknown, or what another worker made of it."
    return errors.NotRecorded(f"{key} ran, and its result is not recorded: {why}", means, next, value)


class _Arguments:
    """Reads the key and the input from the arguments of a call."""

    def __init__(self, function: Callable[..., Any], key: Key, input: Any, name: str) -> None:
        self._signature = inspect.signature(function)
        self._key = key
        self._input = input
        self._name = name
        if isinstance(key, str):
            fields = [field for _, field, _, _ in string.Formatter().parse(key) if field is not None]
            if not fields and self._signature.parameters:
                raise ValueError(
                    f"the key {key!r} of {name} is the same for all arguments: write them into it, like "
                    f"'{key}-{{{next(iter(self._signature.parameters))}}}', or give a function"
                )

    def __call__(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if callable(self._key):
            key = self._key(*args, **kwargs)
        else:
            key = self._key.format(**bound.arguments)
        return key, self._said(bound.arguments, args, kwargs)

    def _said(self, named: Dict[str, Any], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Any:
        said = dict(named) if self._input is None else self._input(*args, **kwargs)
        try:
            to_json(said)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"the arguments of {self._name} are not all JSON ({error}), so two calls cannot be compared by "
                "them: say input=lambda ...: what makes two calls the same one"
            ) from None
        return {"function": self._name, "arguments": said}


def _blocking(client: Optional[Union[Client, AsyncClient]]) -> Client:
    from ._client import AsyncClient, shared

    if isinstance(client, AsyncClient):
        raise TypeError("a function that is no coroutine function needs a Client, and not an AsyncClient")
    return client or shared()


def _asynchronous(client: Optional[Union[Client, AsyncClient]]) -> AsyncClient:
    from ._client import AsyncClient, shared

    return client if isinstance(client, AsyncClient) else (client or shared()).to_async()
