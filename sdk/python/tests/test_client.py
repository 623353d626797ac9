"""The operations API, through both clients, against the real binary."""

from __future__ import annotations

import asyncio
import json
import threading
import unittest
from typing import Any, Dict, List

import kit
import onlyonce
from onlyonce import AsyncClient, Claim, Client, Freed, Replay, Retry, Running
from onlyonce._protocol import Response

QUICK = Retry(retries=5, backoff=0.01, backoff_most=0.05)


def granted(decision: Any) -> Claim:
    assert isinstance(decision, Claim), decision
    return decision


class Operations(kit.GatewayTest):
    def setUp(self) -> None:
        self.client = Client(self.gateway.control, retry=QUICK)

    def test_a_result_is_recorded_and_replayed(self) -> None:
        key = self.key()
        claim = granted(self.client.begin(key, input={"month": "2026-10"}, name="report"))
        self.assertEqual(claim.attempt, 1)
        self.assertNotIn(claim.secret, repr(claim))
        beat = self.client.heartbeat(claim)
        self.assertEqual((beat.state, beat.epoch), ("in_flight", claim.epoch))
        done = self.client.complete(claim, {"pages": 3}, window="7d")
        self.assertEqual((done.state, done.key, done.name), ("completed", key, "report"))
        assert done.expires_at is not None and done.completed_at is not None
        self.assertEqual((done.expires_at - done.completed_at).days, 7)
        again = self.client.begin(key, input={"month": "2026-10"})
        assert isinstance(again, Replay)
        self.assertEqual((again.operation, again.attempt, again.joined), (claim.operation, 2, False))
        self.assertEqual(again.epoch, claim.epoch)
        self.assertEqual(again.result, {"pages": 3})
        self.assertEqual(self.client.get(claim.operation).result, {"pages": 3})

    def test_a_result_that_says_nothing_is_a_result(self) -> None:
        results: List[Any] = [None, 0, False, "", [], {}, 2**53 + 1, "\u2028\U0001f600"]
        for result in results:
            with self.subTest(result=result):
                key = self.key()
                self.client.complete(granted(self.client.begin(key)), result)
                again = self.client.begin(key)
                assert isinstance(again, Replay)
                self.assertEqual(again.result, result)
                self.assertIs(type(again.result), type(result))

    def test_a_later_claim_has_a_higher_epoch(self) -> None:
        key = self.key()
        first = granted(self.client.begin(key))
        self.client.release(first)
        second = granted(self.client.begin(key))
        self.assertGreater(second.epoch, first.epoch)

    def test_another_input_is_refused(self) -> None:
        key = self.key()
        claim = granted(self.client.begin(key, input=[]))
        with self.assertRaises(onlyonce.KeyReused) as caught:
            self.client.begin(key, input={})
        self.assertIn("another input", caught.exception.happened)
        self.assertIn("Nothing ran", caught.exception.means)
        with self.assertRaises(onlyonce.KeyReused):
            self.client.begin(key)
        self.client.complete(claim, 1)

    def test_who_comes_meanwhile_is_told_and_may_wait(self) -> None:
        key = self.key()
        claim = granted(self.client.begin(key))
        running = self.client.begin(key)
        self.assertEqual(running, Running(claim.operation))
        found: List[Any] = []
        waiter = threading.Thread(target=lambda: found.append(self.client.begin(key, wait="30s")))
        waiter.start()
        kit.eventually(lambda: self.gateway.operations(key)[0]["attempts"] == 3, "the third attempt waits")
        self.client.complete(claim, "done")
        waiter.join(kit.PATIENCE)
        self.assertEqual(found[0].result, "done")
        self.assertEqual(self.client.wait(claim.operation, "30s").result, "done")

    def test_what_was_released_is_free_and_who_waited_is_told(self) -> None:
        key = self.key()
        claim = granted(self.client.begin(key))
        found: List[Any] = []
        waiter = threading.Thread(target=lambda: found.append(self.client.begin(key, wait="30s")))
        waiter.start()
        kit.eventually(lambda: self.gateway.operations(key)[0]["attempts"] == 2, "the second attempt waits")
        self.assertEqual(self.client.release(claim).state, "released")
        waiter.join(kit.PATIENCE)
        self.assertEqual(found, [Freed(claim.operation)])
        granted(self.client.begin(key))

    def test_an_unknown_outcome_is_told_until_it_is_asked_to_run_again(self) -> None:
        key = self.key()
        claim = granted(self.client.begin(key))
        self.assertEqual(self.client.fail(claim).state, "unknown")
        with self.assertRaises(onlyonce.Unknown) as caught:
            self.client.begin(key)
        self.assertEqual(caught.exception.operation, claim.operation)
        self.assertIn(claim.operation, caught.exception.next)
        again = granted(self.client.begin(key, on_unknown="rerun"))
        with self.assertRaises(onlyonce.ClaimLost):
            self.client.complete(claim, "late")
        self.client.complete(again, "second")
        with self.assertRaises(onlyonce.ClaimLost):
            self.client.heartbeat(claim)
        with self.assertRaises(onlyonce.AlreadySettled):
            self.client.fail(again)

    def test_a_claim_whose_answer_was_lost_is_found_again(self) -> None:
        line = self.line()
        client = Client(line.url, retry=QUICK)
        line.lose_answers(2)
        claim = granted(client.begin(self.key()))
        self.assertEqual(line.requests, 3)
        line.lose_answers(1)
        self.assertEqual(client.complete(claim, "once").state, "completed")

    def test_a_gateway_that_is_busy_is_asked_again_with_the_same_nonce(self) -> None:
        asked: List[Any] = []
        decision = {"decision": "in_flight", "operation": None}

        def serve(handler: Any) -> None:
            asked.append(json.loads(handler.body))
            busy = len(asked) < 3
            kit.answer(handler, 503 if busy else 200, json.dumps({} if busy else decision).encode())

        with kit.serving(serve) as url:
            self.assertEqual(Client(url, retry=QUICK).begin("k"), Running(None))
        self.assertEqual(len(asked), 3)
        self.assertEqual(len({begin["nonce"] for begin in asked}), 1)

    def test_waits_are_spread_and_what_the_gateway_asks_for_is_kept(self) -> None:
        retry = Retry(random=lambda: 1.0)
        self.assertEqual([retry.wait(n, None) for n in range(6)], [0.5, 1, 2, 4, 8, 8])
        self.assertEqual(Retry(random=lambda: 0.0).wait(3, None), 0)
        for text, wait in (("7", 7.5), ("0", 0.5), ("soon", 0.5)):
            self.assertEqual(retry.wait(0, Response(503, {"retry-after": text}, b"")), wait)

    def test_a_gateway_that_does_not_answer_is_an_error_that_says_so(self) -> None:
        line = self.line()
        line.cut()
        with self.assertRaises(onlyonce.Unavailable) as caught:
            Client(line.url, retry=QUICK).begin(self.key())
        self.assertEqual(line.requests, 6)
        self.assertIn("no answer", caught.exception.happened)

    def test_an_operation_that_is_not_there(self) -> None:
        with self.assertRaises(onlyonce.NoSuchOperation):
            self.client.get("op_01a21c34-c8f7-72b6-948d-8b9e04c505ca")
        with self.assertRaises(onlyonce.Refused) as caught:
            self.client.get("../operations")
        self.assertEqual(caught.exception.status, 400)

    def test_a_key_that_is_none_is_refused(self) -> None:
        with self.assertRaises(onlyonce.Refused):
            self.client.begin("two words")

    def test_an_address_that_is_no_control_listener(self) -> None:
        with self.assertRaises(ValueError):
            Client("127.0.0.1:8788")
        with kit.serving(lambda handler: kit.answer(handler, 200, b"hello")) as url:
            with self.assertRaises(onlyonce.Refused) as caught:
                Client(url, retry=QUICK).begin(self.key())
        self.assertIn("control listener", str(caught.exception))


class Asynchronous(kit.GatewayTest):
    def test_the_same_for_asyncio(self) -> None:
        asyncio.run(self._the_same())

    async def _the_same(self) -> None:
        line = self.line()
        client = AsyncClient(line.url, retry=QUICK)
        key = self.key()
        line.lose_answers(2)
        claim = granted(await client.begin(key, input=1))
        waiter = asyncio.ensure_future(client.begin(key, input=1, wait="30s"))
        await client.heartbeat(claim)
        with self.assertRaises(onlyonce.KeyReused):
            await client.begin(key, input=2)
        await client.complete(claim, "\u00e9" * 70_000)
        found = await waiter
        assert isinstance(found, Replay)
        self.assertEqual(found.result, "\u00e9" * 70_000)
        self.assertEqual((await client.wait(claim.operation, 30)).state, "completed")
        other = granted(await client.begin(self.key()))
        self.assertEqual((await client.release(other)).state, "released")
        other = granted(await client.begin(self.key()))
        self.assertEqual((await client.fail(other)).state, "unknown")
        line.cut()
        with self.assertRaises(onlyonce.Unavailable):
            await client.get(other.operation)


class Limits(kit.GatewayTest):
    @classmethod
    def make_gateway(cls) -> kit.Gateway:
        return kit.Gateway(limits='work_result = "1KiB"')

    def test_a_result_that_is_too_large_is_not_lost(self) -> None:
        client = Client(self.gateway.control, retry=QUICK)
        claim = granted(client.begin(self.key()))
        with self.assertRaises(onlyonce.ResultTooLarge):
            client.complete(claim, "x" * 2000)
        client.complete(claim, {"where": "elsewhere"})
        self.assertEqual(client.get(claim.operation).result, {"where": "elsewhere"})


class Tokens(kit.GatewayTest):
    @classmethod
    def make_gateway(cls) -> kit.Gateway:
        token = '[[server.token]]\nname = "{0}"\ntoken = "env:TOKEN_{0}"\nrights = ["work"]\ntenant = "{0}"\n'
        secrets = {f"TOKEN_{name}": f"{name}-secret-of-a-worker" for name in ("a", "b")}
        route = '[[route]]\nkind = "work"\npath_prefix = "/workers"\n'
        return kit.Gateway(secrets=secrets, extra=token.format("a") + token.format("b") + route)

    def test_a_token_works_for_its_tenant(self) -> None:
        key = self.key()
        results: Dict[str, Any] = {}
        for name in ("a", "b"):
            client = Client(self.gateway.control, token=f"{name}-secret-of-a-worker", retry=QUICK)
            claim = granted(client.begin(key))
            self.assertEqual(client.complete(claim, name).tenant, name)
            results[name] = client.begin(key)
        self.assertEqual({name: found.result for name, found in results.items()}, {"a": "a", "b": "b"})

    def test_a_route_for_workers_is_the_same(self) -> None:
        key = self.key()
        token = "a-secret-of-a-worker"
        by_route = Client(f"{self.gateway.url}/workers/", token=token, retry=QUICK)
        by_route.complete(granted(by_route.begin(key)), "done")
        again = Client(self.gateway.control, token=token, retry=QUICK).begin(key)
        assert isinstance(again, Replay)
        self.assertEqual(again.result, "done")

    def test_without_a_token_it_is_refused(self) -> None:
        for token in (None, "another-secret-of-nobody"):
            with self.assertRaises(onlyonce.Refused) as caught:
                Client(self.gateway.control, token=token, retry=QUICK).begin(self.key())
            self.assertEqual(caught.exception.status, 401)


if __name__ == "__main__":
    unittest.main()
