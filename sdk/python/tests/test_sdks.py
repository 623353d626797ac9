"""The official SDKs with a durable key per action, unmodified, through the real gateway, before the sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import unittest
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import anthropic
import openai
import stripe

import kit
import onlyonce
from onlyonce import ActionKeys

MESSAGES: Any = [{"role": "user", "content": "Hello"}]


class Provider:
    """How one SDK makes one paid call."""

    preset = ""

    def __init__(self, base: str) -> None:
        self.base = base

    def client(self) -> Any:
        raise NotImplementedError

    def call(self, client: Any, size: int = 10, headers: Optional[Dict[str, str]] = None) -> str:
        raise NotImplementedError

    def async_client(self) -> Any:
        raise NotImplementedError

    async def call_async(self, client: Any) -> str:
        raise NotImplementedError

    async def close_async(self, client: Any) -> None:
        await client.close()


class OpenAI(Provider):
    preset = "openai"

    def client(self) -> Any:
        return openai.OpenAI(base_url=f"{self.base}/v1", api_key="sk-test", max_retries=4)

    def call(self, client: Any, size: int = 10, headers: Optional[Dict[str, str]] = None) -> str:
        made = client.chat.completions.create(model="m", max_tokens=size, messages=MESSAGES, extra_headers=headers)
        return str(made.id)

    def async_client(self) -> Any:
        return openai.AsyncOpenAI(base_url=f"{self.base}/v1", api_key="sk-test")

    async def call_async(self, client: Any) -> str:
        return str((await client.chat.completions.create(model="m", max_tokens=10, messages=MESSAGES)).id)


class Anthropic(Provider):
    preset = "anthropic"

    def client(self) -> Any:
        return anthropic.Anthropic(base_url=self.base, api_key="sk-test", max_retries=4)

    def call(self, client: Any, size: int = 10, headers: Optional[Dict[str, str]] = None) -> str:
        made = client.messages.create(model="m", max_tokens=size, messages=MESSAGES, extra_headers=headers)
        return str(made.id)

    def async_client(self) -> Any:
        return anthropic.AsyncAnthropic(base_url=self.base, api_key="sk-test")

    async def call_async(self, client: Any) -> str:
        return str((await client.messages.create(model="m", max_tokens=10, messages=MESSAGES)).id)


class Stripe(Provider):
    preset = "stripe"

    def client(self) -> Any:
        return stripe.StripeClient("sk_test_1", base_addresses={"api": self.base}, max_network_retries=4)

    def call(self, client: Any, size: int = 10, headers: Optional[Dict[str, str]] = None) -> str:
        charge: Any = {"amount": 100 + size, "currency": "eur", "source": "tok_visa"}
        return str(client.v1.charges.create(charge, {"headers": headers or {}}).id)

    def async_client(self) -> Any:
        self._http = stripe.HTTPXClient()
        return stripe.StripeClient("sk_test_1", base_addresses={"api": self.base}, http_client=self._http)

    async def close_async(self, client: Any) -> None:
        close: Any = self._http.close_async
        await close()

    async def call_async(self, client: Any) -> str:
        charge: Any = {"amount": 110, "currency": "eur", "source": "tok_visa"}
        return str((await client.v1.charges.create_async(charge)).id)


PROVIDERS: Dict[str, Callable[[str], Provider]] = {"openai": OpenAI, "anthropic": Anthropic, "stripe": Stripe}


class Sdk:
    """What holds for each SDK. Subclassed below, once for each."""

    class Cases(kit.GatewayTest):
        name = ""
        sandbox: kit.Sandbox
        # What the SDK raises where the outcome is unknown.
        status_error: Any

        @classmethod
        def make_gateway(cls) -> kit.Gateway:
            cls.sandbox = kit.Sandbox()
            cls.addClassCleanup(cls.sandbox.close)
            return kit.Gateway(cls.sandbox.url, preset=cls.name)

        def setUp(self) -> None:
            self.provider = PROVIDERS[self.name](self.gateway.url)
            self.keys = ActionKeys(self.folder())
            self.before = len(self.sandbox.ledger())

        def ran(self) -> int:
            return len(self.sandbox.ledger()) - self.before

        def test_an_action_runs_once(self) -> None:
            client = self.provider.client()
            first = self.provider.call(self.keys.client(client, "a"))
            self.assertEqual(self.provider.call(self.keys.client(client, "a")), first)
            # As a restarted process has it.
            again = ActionKeys(self.keys.folder.path).client(self.provider.client(), "a")
            self.assertEqual(self.provider.call(again), first)
            self.assertNotEqual(self.provider.call(self.keys.client(client, "b")), first)
            self.assertEqual(self.ran(), 2)
            kept = self.keys.folder.look("a")
            assert kept is not None and kept.note is not None
            self.assertEqual(kept.note.answered, 200)
            assert kept.note.expires_at is not None
            self.assertEqual(self.gateway.operations(kept.entry.key)[0]["attempts"], 3)

        def test_the_same_for_asyncio(self) -> None:
            async def twice() -> List[str]:
                client = self.provider.async_client()
                calls = [self.provider.call_async(self.keys.client(client, "a")) for _ in range(2)]
                try:
                    return list(await asyncio.gather(*calls))
                finally:
                    await self.provider.close_async(client)

            self.assertEqual(len(set(asyncio.run(twice()))), 1)
            # Blocking or not, it is one request.
            self.provider.call(self.keys.client(self.provider.client(), "a"))
            self.assertEqual(self.ran(), 1)

        def test_the_sdks_own_retries_carry_the_key(self) -> None:
            headers = {"X-Sandbox-Fault": "status:503", "X-Sandbox-Times": "1", "X-Sandbox-Tag": self.key()}
            self.provider.call(self.keys.client(self.provider.client(), "a"), headers=headers)
            kept = self.keys.folder.look("a")
            assert kept is not None
            (operation,) = self.gateway.operations(kept.entry.key)
            self.assertEqual((operation["state"], operation["attempts"]), ("completed", 2))

        def test_another_request_is_refused_and_nothing_is_sent(self) -> None:
            client = self.provider.client()
            self.provider.call(self.keys.client(client, "a"))
            with self.assertRaises(onlyonce.ActionReused) as caught:
                self.provider.call(self.keys.client(client, "a"), size=11)
            self.assertIn("its method, URL or body differs", str(caught.exception))
            kept = self.keys.folder.look("a")
            assert kept is not None
            self.assertEqual(self.gateway.operations(kept.entry.key)[0]["attempts"], 1)

        def test_nothing_is_sent_once_the_window_may_be_over(self) -> None:
            now = [1_800_000_000.0]
            keys = ActionKeys(self.keys.folder.path, clock=lambda: now[0])
            client = self.provider.client()
            late = keys.client(client, "a")
            self.provider.call(late)
            # What the gateway told is long past by this clock; so look at the configured window alone.
            for note in self.keys.folder.path.glob("*.note"):
                note.unlink()
            now[0] += 24 * 3600
            with self.assertRaises(onlyonce.WindowOver):
                keys.client(client, "a")
            with self.assertRaises(onlyonce.WindowOver):
                self.provider.call(late)
            self.assertEqual(self.ran(), 1)

        def test_an_unknown_outcome_is_noted_and_never_tried_again(self) -> None:
            client = self.provider.client()
            for _ in range(2):
                with self.assertRaises(self.status_error):
                    fault = {"X-Sandbox-Fault": "reset-before-head"}
                    self.provider.call(self.keys.client(client, "a"), headers=fault)
            self.assertEqual(self.ran(), 1)
            kept = self.keys.folder.look("a")
            assert kept is not None and kept.note is not None
            self.assertIsNone(kept.note.answered)
            self.assertEqual(self.gateway.operations(kept.entry.key)[0]["attempts"], 2)

        def test_a_process_that_is_killed_goes_on_with_its_key(self) -> None:
            words = [self.name, self.gateway.url, str(self.keys.folder.path)]
            with kit.running(*kit.python(__file__, "killed", *words), env=kit.environment()) as process:
                self.assertEqual(process.finish(), -signal.SIGKILL)
            self.assertEqual(self.ran(), 1)
            with kit.running(*kit.python(__file__, "whole", *words), env=kit.environment()) as process:
                process.wait_for("answered")
            self.assertEqual(self.ran(), 1)

        def test_the_client_itself_is_left_as_it_was(self) -> None:
            client = self.provider.client()
            self.keys.client(client, "a")
            self.assertNotEqual(self.provider.call(client), self.provider.call(client))


class OpenAICase(Sdk.Cases):
    name = "openai"
    status_error = openai.InternalServerError

    def test_a_stream_is_replayed(self) -> None:
        client = self.provider.client()
        texts = []
        for _ in range(2):
            keyed = self.keys.client(client, "a")
            stream = keyed.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            texts.append("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
        self.assertEqual(texts[0], texts[1])
        self.assertEqual(self.ran(), 1)

    def test_a_refusal_is_an_error_of_the_sdk_too_and_is_not_retried(self) -> None:
        client = self.keys.client(self.provider.client(), "a")
        with self.assertRaises(openai.OpenAIError) as caught:
            self.provider.call(client, headers={"Idempotency-Key": "mine"})
        self.assertIsInstance(caught.exception, onlyonce.KeyPresent)


class AnthropicCase(Sdk.Cases):
    name = "anthropic"
    status_error = anthropic.InternalServerError

    def test_a_refusal_is_an_error_of_the_sdk_too_and_is_not_retried(self) -> None:
        client = self.keys.client(self.provider.client(), "a")
        with self.assertRaises(anthropic.AnthropicError) as caught:
            self.provider.call(client, headers={"Idempotency-Key": "mine"})
        self.assertIsInstance(caught.exception, onlyonce.KeyPresent)


class StripeCase(Sdk.Cases):
    name = "stripe"
    status_error = stripe.APIError


class Others(unittest.TestCase):
    def test_a_client_that_is_not_known_is_refused(self) -> None:
        with self.assertRaises(TypeError):
            ActionKeys(Path("/tmp") / f"onlyonce-sdk-none-{os.getpid()}").client(object(), "a")


def child(how: str, name: str, base: str, folder: str) -> None:
    """One call in a process of its own. ``killed`` ends as soon as the answer is there, before anybody has it."""
    provider = PROVIDERS[name](base)
    if how == "killed":
        answered = onlyonce.ActionCall.answered

        def killed(self: onlyonce.ActionCall, *args: Any) -> None:
            answered(self, *args)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(onlyonce.ActionCall, "answered", killed)
    provider.call(ActionKeys(folder).client(provider.client(), "a"))
    print("answered", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 5:
        child(*sys.argv[1:])
    else:
        unittest.main()
