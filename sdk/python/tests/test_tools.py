"""Tools of agent loops, with the official SDKs' own types, against the real binary."""

from __future__ import annotations

import asyncio
import json
import unittest
from typing import Any, Dict, List

import anthropic.types
import openai.types.chat
import openai.types.responses

import kit
import onlyonce
from onlyonce import Client, Retry, ToolCall

QUICK = Retry(retries=5, backoff=0.01, backoff_most=0.05)


def chat_call(id: str, name: str, arguments: str) -> Any:
    function = {"name": name, "arguments": arguments}
    return openai.types.chat.ChatCompletionMessageFunctionToolCall.model_validate(
        {"id": id, "type": "function", "function": function}
    )


class ToolsOfARun(kit.GatewayTest):
    def setUp(self) -> None:
        self.sent: List[Any] = []

        def send_email(to: str, text: str) -> Dict[str, Any]:
            self.sent.append((to, text))
            return {"sent": len(self.sent)}

        self.send_email = send_email
        self.run_id = self.key()

    def tools(self) -> onlyonce.Tools:
        """The tools as a restarted process has them."""
        client = Client(self.gateway.control, retry=QUICK)
        return client.tools({"send_email": self.send_email}, run=self.run_id)

    def test_a_restarted_loop_gets_what_the_tool_returned(self) -> None:
        arguments = {"to": "a@example.com", "text": "Hello"}
        for _ in range(2):
            self.assertEqual(self.tools().call(1, "call_1", "send_email", arguments), {"sent": 1})
        self.assertEqual(self.tools().call(2, "call_1", "send_email", arguments), {"sent": 2})
        self.assertEqual(self.tools().call(1, "call_2", "send_email", arguments), {"sent": 3})
        self.assertEqual(len(self.sent), 3)

    def test_a_call_that_was_reworded_is_refused_and_runs_nothing(self) -> None:
        self.tools().call(1, "call_1", "send_email", {"to": "a@example.com", "text": "Hello"})
        with self.assertRaises(onlyonce.ToolCallChanged) as caught:
            self.tools().call(1, "call_1", "send_email", {"to": "a@example.com", "text": "Hi there"})
        self.assertIsInstance(caught.exception, onlyonce.KeyReused)
        for part in ("call_1", "step 1", self.run_id, "Hi there"):
            self.assertIn(part, caught.exception.happened)
        self.assertEqual(len(self.sent), 1)

    def test_a_call_that_does_not_fit_its_tool_begins_nothing_and_tells_the_model(self) -> None:
        wrong = [
            chat_call("c", "send_email", '{"x": 1}'),
            chat_call("c", "send_email", '{"to": "a", "text": "b", "x": 1}'),
            chat_call("c", "send_email", "[1]"),
            chat_call("c", "send_email", '{"to": '),
            chat_call("c", "send_mail", '{"to": "a", "text": "b"}'),
        ]
        for asked in wrong:
            with self.assertRaises(onlyonce.BadToolCall) as caught:
                self.tools().answer(1, asked)
            answer = caught.exception.answer
            self.assertEqual((answer["role"], answer["tool_call_id"]), ("tool", "c"))
            self.assertTrue(answer["content"].startswith("Nothing was done: "), answer)
        self.assertIn("there are send_email", answer["content"])
        self.assertEqual(self.gateway.operations(self.tools().key(1, "c")), [])
        block = {"type": "tool_use", "id": "c", "name": "send_email", "input": {"to": "a"}}
        with self.assertRaises(onlyonce.BadToolCall) as caught:
            self.tools().answer(1, block)
        self.assertEqual(caught.exception.answer["is_error"], True)
        self.assertIn("text", caught.exception.answer["content"])
        # The model has put it right, under the same id.
        self.tools().call(1, "c", "send_email", {"to": "a", "text": "b"})
        self.assertEqual(self.sent, [("a", "b")])

    def test_a_call_that_does_not_fit_begins_nothing_on_asyncio_either(self) -> None:
        async def run() -> None:
            tools = onlyonce.AsyncClient(self.gateway.control).tools({"send_email": self.send_email}, run=self.run_id)
            with self.assertRaises(onlyonce.BadToolCall):
                await tools.call(1, "c", "send_email", {"to": "a"})
            self.assertEqual(self.gateway.operations(tools.key(1, "c")), [])

        asyncio.run(run())

    def test_arguments_in_another_order_are_the_same(self) -> None:
        self.tools().call(1, "c", "send_email", {"to": "a", "text": "b"})
        self.assertEqual(self.tools().call(1, "c", "send_email", {"text": "b", "to": "a"}), {"sent": 1})

    def test_calls_of_openais_chat(self) -> None:
        asked = chat_call("call_9", "send_email", '{"to": "a", "text": "b"}')
        expected = {"role": "tool", "tool_call_id": "call_9", "content": '{"sent": 1}'}
        self.assertEqual(self.tools().answer(1, asked), expected)
        self.assertEqual(self.tools().answer(1, asked.model_dump()), expected)
        with self.assertRaises(onlyonce.ToolCallChanged):
            self.tools().answer(1, chat_call("call_9", "send_email", '{"to": "a", "text": "c"}'))

    def test_calls_of_openais_responses(self) -> None:
        arguments = json.dumps({"to": "a", "text": "b"})
        asked = openai.types.responses.ResponseFunctionToolCall.model_validate(
            {"type": "function_call", "call_id": "call_9", "name": "send_email", "arguments": arguments}
        )
        expected = {"type": "function_call_output", "call_id": "call_9", "output": '{"sent": 1}'}
        self.assertEqual(self.tools().answer(1, asked), expected)
        self.assertEqual(self.tools().answer(1, asked.model_dump()), expected)

    def test_blocks_of_anthropics(self) -> None:
        asked = anthropic.types.ToolUseBlock.model_validate(
            {"type": "tool_use", "id": "toolu_9", "name": "send_email", "input": {"to": "a", "text": "b"}}
        )
        expected = {"type": "tool_result", "tool_use_id": "toolu_9", "content": '{"sent": 1}'}
        self.assertEqual(self.tools().answer(1, asked), expected)
        self.assertEqual(self.tools().answer(1, asked.model_dump()), expected)

    def test_what_is_no_call_of_a_tool_runs_nothing(self) -> None:
        tools = self.tools()
        with self.assertRaises(ValueError):
            tools.call(1, "", "send_email", {})
        with self.assertRaises(ValueError):
            tools.answer(1, {"type": "text", "text": "Hello"})
        with self.assertRaises(ValueError):
            Client(self.gateway.control).tools({}, run="")
        self.assertEqual(self.sent, [])

    def test_a_key_tells_its_parts_apart(self) -> None:
        tools = Client(self.gateway.control).tools({}, run="run/1")
        self.assertEqual(tools.key(2, "a b:\u00e9!*'()~"), "run%2F1/2/a%20b%3A%C3%A9!*'()~")
        self.assertNotEqual(tools.key("2/a", "b"), tools.key("2", "a/b"))

    def test_a_tool_that_fails_is_not_run_again(self) -> None:
        def broken() -> None:
            self.sent.append("half")
            raise RuntimeError("half way")

        tools = Client(self.gateway.control, retry=QUICK).tools({"broken": broken}, run=self.run_id)
        with self.assertRaises(RuntimeError):
            tools.call(1, "c", "broken", {})
        with self.assertRaises(onlyonce.Unknown):
            tools.call(1, "c", "broken", {})
        self.assertEqual(self.sent, ["half"])

    def test_key_reuse_inside_of_a_tool_is_not_taken_for_its_own(self) -> None:
        client = Client(self.gateway.control, retry=QUICK)
        inner = self.key()

        def nested(n: int) -> None:
            with client.operation(inner, input=n) as op:
                op.complete(n)

        tools = client.tools({"nested": nested}, run=self.run_id)
        tools.call(1, "a", "nested", {"n": 1})
        with self.assertRaises(onlyonce.KeyReused) as caught:
            tools.call(1, "b", "nested", {"n": 2})
        self.assertNotIsInstance(caught.exception, onlyonce.ToolCallChanged)

    def test_the_same_for_asyncio(self) -> None:
        async def send_later(to: str, text: str) -> Dict[str, Any]:
            await asyncio.sleep(0)
            return self.send_email(to, text)

        async def run() -> None:
            client = onlyonce.AsyncClient(self.gateway.control, retry=QUICK)
            tools = client.tools({"later": send_later, "now": self.send_email}, run=self.run_id)
            for _ in range(2):
                self.assertEqual(await tools.call(1, "a", "later", {"to": "a", "text": "b"}), {"sent": 1})
                asked = chat_call("b", "now", '{"to": "a", "text": "b"}')
                self.assertEqual((await tools.answer(1, asked))["content"], '{"sent": 2}')
            with self.assertRaises(onlyonce.ToolCallChanged):
                await tools.call(1, "a", "later", {"to": "a", "text": "c"})

        asyncio.run(run())
        self.assertEqual(len(self.sent), 2)


class Reading(unittest.TestCase):
    def test_no_arguments_are_none(self) -> None:
        self.assertEqual(ToolCall.of(chat_call("c", "t", "")).arguments, {})
        self.assertEqual(ToolCall("c", "t", {}).answer("text")["content"], "text")


if __name__ == "__main__":
    unittest.main()
