"""Tools of agent loops: each call of a tool runs once, however often the loop is killed and started again."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Type, TypedDict, Union
from urllib.parse import quote

from . import _errors as errors
from ._once import record, record_async
from ._operation import AsyncOperation, Operation
from ._time import Span

Tool = Callable[..., Any]


class ToolOptions(TypedDict, total=False):
    """How the calls of tools are made: see `Client.operation`."""

    wait: Span
    lease: Span
    window: Optional[Span]
    on_unknown: str
    namespace: Optional[str]
    did_not_run: Tuple[Type[BaseException], ...]


Step = Union[int, str]


@dataclass(frozen=True)
class ToolCall:
    """What a model asks for."""

    id: str
    name: str
    arguments: Any
    dialect: str = "plain"

    @classmethod
    def of(cls, asked: Any) -> ToolCall:
        """Reads a tool call of OpenAI's chat completions or Responses, or a ``tool_use`` block of Anthropic's.

        Objects of the official SDKs and dictionaries are the same here.

        Raises:
            BadToolCall: Its arguments are not JSON.
            ValueError: It is none of them.
        """
        kind = _field(asked, "type")
        if kind == "tool_use":
            return cls(_field(asked, "id"), _field(asked, "name"), _field(asked, "input"), "anthropic")
        if kind == "function_call":
            call = cls(_field(asked, "call_id"), _field(asked, "name"), _field(asked, "arguments"), "responses")
            return call._parsed()
        function = _field(asked, "function")
        if function is not None:
            call = cls(_field(asked, "id"), _field(function, "name"), _field(function, "arguments"), "chat")
            return call._parsed()
        raise ValueError(f"this is no tool call of OpenAI's and no tool_use block of Anthropic's: {asked!r}")

    def _parsed(self) -> ToolCall:
        """The same with its arguments as JSON, of a dialect that writes them as text."""
        text = self.arguments
        if not isinstance(text, str):
            return self
        try:
            return replace(self, arguments=json.loads(text) if text.strip() else {})
        except (ValueError, RecursionError) as error:
            raise self.bad(f"the arguments of {self.name} are not JSON ({error}): {text[:200]!r}") from None

    def bad(self, why: str) -> errors.BadToolCall:
        """The error that says to you and to the model that it asked for what cannot be done."""
        told = self.answer(f"Nothing was done: {why}")
        if self.dialect == "anthropic":
            told["is_error"] = True
        return errors.BadToolCall(
            f"Tool call {self.id} cannot be made: {why}.",
            "Nothing ran, and no operation was begun.",
            "Hand the answer of this error to the model, which can correct itself.",
            told,
        )

    def answer(self, result: Any) -> Dict[str, Any]:
        """`result` as the message or block that the model is given."""
        content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
        if self.dialect == "anthropic":
            return {"type": "tool_result", "tool_use_id": self.id, "content": content}
        if self.dialect == "responses":
            return {"type": "function_call_output", "call_id": self.id, "output": content}
        return {"role": "tool", "tool_call_id": self.id, "content": content}


def _field(of: Any, name: str) -> Any:
    return of.get(name) if isinstance(of, Mapping) else getattr(of, name, None)


class _Base:
    def __init__(
        self, begin: Callable[..., Any], tools: Mapping[str, Tool], run: str, options: Mapping[str, Any]
    ) -> None:
        if not run:
            raise ValueError("the run has no id: name it by what survives a restart, like the id of its job")
        self._begin = begin
        self._tools = dict(tools)
        self._run = run
        self._options = dict(options)

    def key(self, step: Step, call_id: str) -> str:
        """The key of a tool call: run id, step and tool call id."""
        parts = (self._run, str(step), call_id)
        # As encodeURIComponent does it: Python and Node share the keys of a run.
        return "/".join(quote(part, safe="-_.!~*'()") for part in parts)

    def _asked(self, step: Step, call: ToolCall) -> Any:
        if not call.id:
            raise ValueError(f"the call of {call.name} has no id, so it cannot be told from another one")
        tool = self._tools.get(call.name)
        if tool is None:
            raise call.bad(f"there is no tool {call.name!r}; there are {', '.join(sorted(self._tools))}")
        # What cannot be called at all must not leave an operation of which nobody knows.
        _check_arguments(tool, call)
        said = {"tool": call.name, "arguments": call.arguments}
        return self._begin(self.key(step, call.id), input=said, name=call.name, **self._options)

    def _changed(self, step: Step, call: ToolCall, error: errors.KeyReused) -> errors.ToolCallChanged:
        return errors.ToolCallChanged(
            f"Tool call {call.id} of step {step} in run {self._run} was made before with another tool or other "
            f"arguments than {call.name}({json.dumps(call.arguments, ensure_ascii=False)}).",
            error.means,
            "Keep the model's answers with the run, so that a restarted loop asks for the same; a call that was "
            "reworded needs a new tool call id or step.",
        )


def _check_arguments(tool: Tool, call: ToolCall) -> None:
    """Raises BadToolCall where `tool` cannot be called with the arguments of `call`."""
    if not isinstance(call.arguments, dict):
        raise call.bad(f"the arguments of {call.name} are not an object: {call.arguments!r}")
    try:
        signature = inspect.signature(tool)
    except (TypeError, ValueError):
        # Some that are not written in Python have none.
        return
    try:
        signature.bind(**call.arguments)
    except TypeError as error:
        raise call.bad(f"the arguments do not fit {call.name}{signature}: {error}") from None


class Tools(_Base):
    """The tools of one run of an agent. Made by `Client.tools`.

    A call is known by run id, step and tool call id; its input is the tool's name and arguments. So a restarted loop
    gets the recorded result of what ran, and a call that was reworded under the same id is refused.

    ::

        tools = client.tools({"send_email": send_email}, run="run-7")
        message = tools.answer(3, tool_call)   # of OpenAI's or Anthropic's
    """

    def call(self, step: Step, call_id: str, name: str, arguments: Mapping[str, Any]) -> Any:
        """Calls the tool `name` once, and returns its result.

        Raises:
            ToolCallChanged: The same call was made with another tool or other arguments.
            BadToolCall: There is no such tool, or the arguments do not fit it. Nothing was begun.
            Whatever a ``@once`` function raises.
        """
        return self._call(step, ToolCall(call_id, name, dict(arguments)))

    def answer(self, step: Step, asked: Any) -> Dict[str, Any]:
        """Does what the model asked for, and returns the message or block to answer it with. Raises as `call` does.

        ::

            try:
                messages.append(tools.answer(step, call))
            except onlyonce.BadToolCall as error:
                messages.append(error.answer)
        """
        call = ToolCall.of(asked)
        return call.answer(self._call(step, call))

    def _call(self, step: Step, call: ToolCall) -> Any:
        operation: Operation = self._asked(step, call)
        try:
            with operation:
                if not operation.replayed:
                    record(operation, self._tools[call.name](**call.arguments))
        except errors.KeyReused as error:
            if operation.id:
                # It is of something that the tool itself has called.
                raise
            raise self._changed(step, call, error) from error
        return operation.result


class AsyncTools(_Base):
    """The same for asyncio: tools may be functions or coroutine functions."""

    async def call(self, step: Step, call_id: str, name: str, arguments: Mapping[str, Any]) -> Any:
        """See `Tools.call`."""
        return await self._call(step, ToolCall(call_id, name, dict(arguments)))

    async def answer(self, step: Step, asked: Any) -> Dict[str, Any]:
        """See `Tools.answer`."""
        call = ToolCall.of(asked)
        return call.answer(await self._call(step, call))

    async def _call(self, step: Step, call: ToolCall) -> Any:
        operation: AsyncOperation = self._asked(step, call)
        try:
            async with operation:
                if not operation.replayed:
                    result = self._tools[call.name](**call.arguments)
                    await record_async(operation, await result if inspect.isawaitable(result) else result)
        except errors.KeyReused as error:
            if operation.id:
                # It is of something that the tool itself has called.
                raise
            raise self._changed(step, call, error) from error
        return operation.result
