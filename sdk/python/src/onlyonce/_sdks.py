"""The official SDKs: a client of theirs that sends the key of an action with each attempt.

None of them is imported here. OpenAI's and Anthropic's clients take an httpx client, Stripe's an HTTP client of its
own; each gets one that puts the key in before it hands the request on.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Dict, Mapping, Tuple, TypeVar, cast

from ._actions import HEADER, ActionCall, is_problem, refuse_other_key
from ._errors import OnlyonceError

C = TypeVar("C")


def with_action(client: C, call: ActionCall) -> C:
    """`client` for the one request of `call`.

    Raises:
        TypeError: It is no client that is known.
    """
    of: Any = client
    inner: Any = getattr(of, "_client", None)
    if hasattr(of, "with_options") and hasattr(inner, "build_request"):
        is_async = asyncio.iscoroutinefunction(inner.send)
        http = (_AsyncHttpx if is_async else _Httpx)(inner, call, _errors_of(client))
        return cast(C, of.with_options(http_client=http))
    if hasattr(of, "_requestor") and type(of).__module__.partition(".")[0] == "stripe":
        return cast(C, _stripe(of, call))
    raise TypeError(
        f"{type(of).__name__} is no client of OpenAI's, Anthropic's or Stripe's: use ActionKeys.call with others"
    )


def _errors_of(client: object) -> Tuple[type, ...]:
    """The base of the errors of the client's SDK. It hands these on as they are, and retries none of them."""
    package = sys.modules.get(type(client).__module__.partition(".")[0])
    found = (getattr(package, name, None) for name in ("OpenAIError", "AnthropicError"))
    return tuple(error for error in found if isinstance(error, type))


class _Httpx:
    """An httpx client (or httpx2), but for what it sends."""

    def __init__(self, inner: Any, call: ActionCall, errors: Tuple[type, ...]) -> None:
        self._inner = inner
        self._call = call
        self._errors = errors

    # The SDKs ask for an instance of httpx.Client.
    __class__: Any = property(lambda self: type(self._inner))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, request: Any, **options: Any) -> Any:
        self._prepare(request, request.read())
        response = self._inner.send(request, **options)
        problem = response.read() if is_problem(response.headers) else None
        self._call.answered(response.status_code, response.headers, problem)
        return response

    def _prepare(self, request: Any, body: bytes) -> None:
        try:
            refuse_other_key(self._call.action, request.headers)
            request.headers[HEADER] = self._call.key(request.method, str(request.url), body)
        except OnlyonceError as error:
            # An error of ours that is one of the SDK's too, and of all its family: it is neither retried nor wrapped.
            error.__class__ = type(type(error).__name__, (type(error), *self._errors), {})
            raise


class _AsyncHttpx(_Httpx):
    async def send(self, request: Any, **options: Any) -> Any:
        body = await request.aread()
        # It waits for the disk.
        await asyncio.get_running_loop().run_in_executor(None, self._prepare, request, body)
        response = await self._inner.send(request, **options)
        problem = await response.aread() if is_problem(response.headers) else None
        status, headers = response.status_code, response.headers
        await asyncio.get_running_loop().run_in_executor(None, self._call.answered, status, headers, problem)
        return response


def _stripe(client: Any, call: ActionCall) -> Any:
    requestor = client._requestor
    options: Dict[str, Any] = requestor._options.to_dict()
    keywords = {name: options[name] for name in _STRIPE_OPTIONS if options.get(name) is not None}
    http = _stripe_http(requestor._get_http_client(), call)
    return type(client)(options["api_key"], http_client=http, **keywords)


_STRIPE_OPTIONS = ("stripe_account", "stripe_context", "stripe_version", "base_addresses", "max_network_retries")


def _stripe_http(inner: Any, call: ActionCall) -> Any:
    import stripe

    class ActionHTTPClient(stripe.HTTPClient):
        """Stripe's own retries, over a client that sends the key of the action in place of Stripe's."""

        name = inner.name

        def _keyed(self, method: str, url: str, headers: Mapping[str, str], body: Any) -> Dict[str, str]:
            data = body if isinstance(body, bytes) else str(body or "").encode()
            others = {name: value for name, value in headers.items() if name.lower() != HEADER.lower()}
            return {**others, HEADER: call.key(method.upper(), url, data)}

        def _noted(self, answer: Any) -> Any:
            body, status, headers = answer
            named = {name.lower(): value for name, value in headers.items()}
            content = body if isinstance(body, bytes) else str(body).encode()
            call.answered(status, named, content if is_problem(named) else None)
            return answer

        def request(self, method: str, url: str, headers: Any, post_data: Any = None, **more: Any) -> Any:
            keyed = self._keyed(method, url, headers or {}, post_data)
            return self._noted(inner.request(method, url, keyed, post_data, **more))

        async def request_async(self, method: str, url: str, headers: Any, post_data: Any = None, **more: Any) -> Any:
            run = asyncio.get_running_loop().run_in_executor
            keyed = await run(None, self._keyed, method, url, headers or {}, post_data)
            answer = await inner.request_async(method, url, keyed, post_data, **more)
            return await run(None, self._noted, answer)

        def sleep_async(self, secs: float) -> Any:
            return inner.sleep_async(secs)

        def close(self) -> None:
            """It belongs to the client that this one was made of."""

        async def close_async(self) -> None:
            """It belongs to the client that this one was made of."""

    return ActionHTTPClient()
