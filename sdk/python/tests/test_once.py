"""Functions and blocks that run once, against the real binary."""

from __future__ import annotations

import asyncio
import time
import unittest
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, List

import kit
import onlyonce
from onlyonce import Claim, Client, Retry

QUICK = Retry(retries=5, backoff=0.01, backoff_most=0.05)


class Functions(kit.GatewayTest):
    def setUp(self) -> None:
        self.client = Client(self.gateway.control, retry=QUICK)
        self.ran: List[Any] = []

    def test_it_runs_once_and_later_calls_get_the_result(self) -> None:
        key = self.key()

        @self.client.once(key=key + "-{month}")
        def report(month: str, pages: int = 3) -> Dict[str, Any]:
            """Makes a report."""
            self.ran.append(month)
            return {"month": month, "pages": (pages, None)}

        first = report("10")
        self.assertEqual(first, {"month": "10", "pages": [3, None]})
        self.assertEqual(report(month="10"), first)
        self.assertEqual(report("11")["month"], "11")
        self.assertEqual(self.ran, ["10", "11"])
        self.assertEqual((report.__name__, report.__doc__), ("report", "Makes a report."))
        self.assertEqual(self.gateway.operations(f"{key}-10")[0]["path"], "report")

    def test_a_span_of_time_that_is_none_is_found_before_anything_runs(self) -> None:
        for wrong in ({"window": "1x"}, {"window": 0}, {"window": "4000d"}, {"wait": "soon"}, {"lease": -1}):
            options: Any = wrong
            with self.assertRaises(ValueError):
                self.client.once(key=self.key(), **options)
        for window in ("1x", "0s", "4000d", float("inf")):
            key = self.key()
            with self.assertRaises(ValueError):
                with self.client.operation(key, window=window):
                    self.ran.append(1)
            self.assertEqual(self.gateway.operations(key), [])
        self.assertEqual(self.ran, [])

    def test_i10_what_ran_and_cannot_be_recorded_is_never_released(self) -> None:
        for result in ("x" * (300 << 10), object()):
            key = self.key()

            @self.client.once(key=key, did_not_run=(Exception,))
            def work() -> Any:
                self.ran.append(key)
                return result

            with self.assertRaises(onlyonce.NotRecorded):
                work()
            with self.assertRaises(onlyonce.Unknown):
                work()
            self.assertEqual(self.ran.count(key), 1)
        key = self.key()
        with self.assertRaises(TypeError):
            with self.client.operation(key, did_not_run=(Exception,)) as op:
                op.complete(object())
        self.assertEqual(self.gateway.operations(key)[0]["state"], "unknown")

    def test_an_error_of_another_operation_does_not_say_that_this_one_did_not_run(self) -> None:
        inner, outer = self.key(), self.key()
        with self.assertRaises(ZeroDivisionError):
            with self.client.operation(inner):
                raise ZeroDivisionError
        with self.assertRaises(onlyonce.Unknown):
            with self.client.operation(outer, did_not_run=(Exception,)):
                with self.client.operation(inner):
                    self.fail("it is unknown")
        self.assertEqual(self.gateway.operations(outer)[0]["state"], "unknown")

    def test_i10_what_ran_and_cannot_be_recorded_is_never_released_on_asyncio(self) -> None:
        key = self.key()

        async def run() -> None:
            client = onlyonce.AsyncClient(self.gateway.control, retry=QUICK)

            @client.once(key=key, did_not_run=(Exception,))
            async def work() -> Any:
                self.ran.append(1)
                return object()

            with self.assertRaises(onlyonce.NotRecorded):
                await work()
            with self.assertRaises(onlyonce.Unknown):
                await work()

        asyncio.run(run())
        self.assertEqual(self.ran, [1])

    def test_a_result_that_is_nested_too_deep_is_told_as_that(self) -> None:
        key = self.key()
        claim = self.client.begin(key)
        assert isinstance(claim, Claim)
        deep = "[" * 100_000 + "]" * 100_000
        said = f'{{"claim": "{claim.secret}", "result": {deep}}}'
        headers = {"Content-Type": "application/json"}
        url = f"{self.gateway.control}/v1/work/{claim.operation}/complete"
        urllib.request.urlopen(urllib.request.Request(url, said.encode(), headers), timeout=60).close()
        with self.assertRaises(onlyonce.Refused) as caught:
            self.client.begin(key)
        self.assertIn("nested too deep", caught.exception.happened)

        deep_value: Any = []
        for _ in range(100_000):
            deep_value = [deep_value]

        @self.client.once(key=self.key())
        def work() -> Any:
            return deep_value

        with self.assertRaises(onlyonce.NotRecorded):
            work()

    def test_who_gives_up_while_it_is_begun_leaves_no_claim_behind(self) -> None:
        key = self.key()

        async def run() -> None:
            client = onlyonce.AsyncClient(self.gateway.control, retry=QUICK)
            send = client._run
            begun = asyncio.Event()

            async def slowly(flow: Any) -> Any:
                found = await send(flow)
                begun.set()
                # The answer is on its way for as long as the caller waits.
                await asyncio.sleep(0)
                return found

            client._run = slowly  # type: ignore[method-assign]

            async def job() -> None:
                async with client.operation(key, lease="1h"):
                    self.ran.append(1)

            giving_up = asyncio.ensure_future(job())
            await begun.wait()
            giving_up.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await giving_up
            while self.gateway.operations(key)[0]["state"] == "in_flight":
                await asyncio.sleep(0.01)

        asyncio.run(asyncio.wait_for(run(), 60))
        self.assertEqual(self.ran, [])
        self.assertEqual(self.gateway.operations(key)[0]["state"], "released")

    def test_a_result_of_none_is_recorded(self) -> None:
        @self.client.once(key=self.key())
        def nothing() -> None:
            self.ran.append(1)

        self.assertIsNone(nothing())
        self.assertIsNone(nothing())
        self.assertEqual(self.ran, [1])

    def test_those_who_come_meanwhile_wait_and_get_the_same(self) -> None:
        key = self.key()

        @self.client.once(key=key)
        def work() -> str:
            self.ran.append(1)
            # All have come before it ends.
            kit.eventually(lambda: self.gateway.operations(key)[0]["attempts"] == 8, "eight attempts")
            return onlyonce.current().id

        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: work(), range(8)))
        self.assertEqual(len(set(results)), 1)
        self.assertTrue(results[0].startswith("op_"))
        self.assertEqual(self.ran, [1])
        with self.assertRaises(LookupError):
            onlyonce.current()

    def test_after_an_exception_nobody_knows_and_nothing_runs_again(self) -> None:
        key = self.key()

        @self.client.once(key=key)
        def work() -> None:
            self.ran.append(1)
            raise RuntimeError("half way")

        with self.assertRaisesRegex(RuntimeError, "half way"):
            work()
        with self.assertRaises(onlyonce.Unknown):
            work()
        self.assertEqual(self.ran, [1])

        @self.client.once(key=key, name="work", on_unknown="rerun")
        def again() -> str:
            self.ran.append(2)
            return "done"

        self.assertEqual(again(), "done")
        self.assertEqual(again(), "done")
        self.assertEqual(self.ran, [1, 2])

    def test_who_waits_for_one_that_dies_may_ask_to_run_it_again(self) -> None:
        key, other = self.key(), self.key()
        # Nobody keeps these claims up.
        self.client.begin(key, lease="1s")
        claim = self.client.begin(other, lease="1s")
        assert isinstance(claim, Claim)
        with self.assertRaises(onlyonce.Unknown):
            with self.client.operation(key):
                self.fail("it ran")
        with self.client.operation(other, on_unknown="rerun") as op:
            self.assertEqual(op.id, claim.operation)
            op.complete("done")

    def test_what_did_not_run_may_run_later(self) -> None:
        for error in (onlyonce.DidNotRun("no seats left"), ConnectionRefusedError("nobody there")):
            with self.subTest(error=error):
                fail: List[Exception] = [error]

                @self.client.once(key=self.key(), did_not_run=(ConnectionRefusedError,))
                def work() -> str:
                    if fail:
                        raise fail.pop()
                    return "done"

                with self.assertRaises(type(error)) as caught:
                    work()
                self.assertIs(caught.exception, error)
                self.assertEqual(work(), "done")

    def test_that_a_part_did_not_run_says_nothing_of_the_whole(self) -> None:
        key = self.key()

        @self.client.once(key=key + "-part")
        def part() -> None:
            raise onlyonce.DidNotRun("no seats left")

        @self.client.once(key=lambda catches: key)
        def whole(catches: bool) -> None:
            if not catches:
                self.ran.append("before the part")
                part()
            try:
                part()
            except onlyonce.DidNotRun as error:
                raise onlyonce.DidNotRun("and nothing before it") from error

        with self.assertRaisesRegex(onlyonce.DidNotRun, "nothing before it"):
            whole(catches=True)
        self.assertEqual(self.gateway.operations(key)[0]["state"], "released")
        with self.assertRaisesRegex(onlyonce.DidNotRun, "no seats"):
            whole(catches=False)
        states = [self.gateway.operations(name)[0]["state"] for name in (f"{key}-part", key)]
        self.assertEqual(states, ["released", "unknown"])

    def test_who_waits_for_what_did_not_run_does_not_run_it(self) -> None:
        key = self.key()

        @self.client.once(key=key)
        def work() -> None:
            self.ran.append(1)
            kit.eventually(lambda: self.gateway.operations(key)[0]["attempts"] == 2, "a second attempt")
            raise onlyonce.DidNotRun("no seats left")

        with ThreadPoolExecutor(2) as pool:
            errors = [call.exception() for call in [pool.submit(work), pool.submit(work)]]
        self.assertEqual(sorted(type(error).__name__ for error in errors), ["DidNotRun", "NothingRan"])
        self.assertEqual(self.ran, [1])

    def test_other_arguments_under_the_same_key_are_refused(self) -> None:
        key = self.key()

        @self.client.once(key=key + "-{order}")
        def charge(order: int, amount: int) -> int:
            self.ran.append(amount)
            return amount

        self.assertEqual(charge(17, 4200), 4200)
        with self.assertRaises(onlyonce.KeyReused):
            charge(17, 4300)

        @self.client.once(key=key + "-{order}")
        def refund(order: int, amount: int) -> int:
            self.ran.append(-amount)
            return -amount

        with self.assertRaises(onlyonce.KeyReused):
            refund(17, 4200)
        self.assertEqual(self.ran, [4200])

    def test_arguments_that_are_not_json_need_an_input(self) -> None:
        class Order:
            id = 17

        key = self.key()

        @self.client.once(key=key + "-{order.id}")
        def charge(order: Order) -> int:
            return order.id

        with self.assertRaisesRegex(TypeError, "input="):
            charge(Order())

        @self.client.once(key=lambda order: f"{key}-{order.id}", input=lambda order: order.id)
        def charge_by_id(order: Order) -> int:
            return order.id

        self.assertEqual(charge_by_id(Order()), 17)

    def test_a_key_without_arguments_for_a_function_with_some_is_a_mistake(self) -> None:
        with self.assertRaisesRegex(ValueError, "report-{month}"):

            @self.client.once(key="report")
            def report(month: str) -> None:
                """Is never called."""

    def test_a_result_that_is_not_json_is_not_lost(self) -> None:
        @self.client.once(key=self.key())
        def work() -> Any:
            return {1, 2}

        with self.assertRaises(onlyonce.NotRecorded) as caught:
            work()
        self.assertEqual(caught.exception.value, {1, 2})
        with self.assertRaises(onlyonce.Unknown):
            work()

    def test_it_can_be_told_not_to_wait(self) -> None:
        key = self.key()
        claim = self.client.begin(key, input={"function": "work", "arguments": {}})
        assert isinstance(claim, Claim)

        @self.client.once(key=key, wait=0)
        def work() -> None:
            self.ran.append(1)

        with self.assertRaises(onlyonce.InFlight) as caught:
            work()
        self.assertEqual(caught.exception.operation, claim.operation)
        self.assertEqual(self.ran, [])
        self.client.complete(claim, None)

    def test_heartbeats_keep_it_for_longer_than_its_lease(self) -> None:
        @self.client.once(key=self.key(), lease="2s")
        def work() -> str:
            operation = onlyonce.current().id
            first = self.client.get(operation).lease_until
            assert first is not None

            def renewed() -> bool:
                until = self.client.get(operation).lease_until
                return until is not None and (until - first).total_seconds() > 2.2

            kit.eventually(renewed, "a lease that ends after the first one")
            return self.client.get(operation).state

        self.assertEqual(work(), "in_flight")

    def test_without_a_client_the_environment_says_where(self) -> None:
        with kit.running(
            *kit.python("-c", "import onlyonce; print('got', onlyonce.once(key='" + self.key() + "')(lambda: 5)())"),
            env=kit.environment(ONLYONCE_CONTROL=self.gateway.control),
        ) as process:
            process.wait_for("got 5")


class Lines(kit.GatewayTest):
    """What happens to calls whose line to the gateway breaks."""

    def setUp(self) -> None:
        self.direct = Client(self.gateway.control, retry=QUICK)
        self.way = self.line()
        self.client = Client(self.way.url, retry=QUICK)
        self.ran: List[Any] = []

    def test_a_claim_that_had_passed_before_it_was_known_is_not_begun(self) -> None:
        key = self.key()
        self.way.hold_answers()

        @self.client.once(key=key, lease="1s")
        def work() -> None:
            self.ran.append(1)

        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(work)
            self.way.wait_for_held()
            self.becomes_unknown(key)
            self.way.let_through()
            error = call.exception(kit.PATIENCE)
        self.assertIsInstance(error, onlyonce.LeaseOver)
        self.assertEqual(self.ran, [])

    def test_an_answer_that_came_late_but_in_time_is_renewed_and_begun(self) -> None:
        key = self.key()
        self.way.hold_answers()

        @self.client.once(key=key, lease="6s")
        def work() -> str:
            return "done"

        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(work)
            self.way.wait_for_held()
            held = time.monotonic()
            kit.eventually(lambda: time.monotonic() - held > 2, "a third of the lease passes")
            self.way.let_through()
            self.assertEqual(call.result(kit.PATIENCE), "done")
        # Begin, heartbeat, complete.
        self.assertEqual(self.way.requests, 3)

    def test_a_claim_that_was_lost_is_found_out_and_nothing_is_recorded(self) -> None:
        key = self.key()
        seen: List[BaseException] = []

        @self.client.once(key=key, lease="1s")
        def work() -> str:
            operation = onlyonce.current()
            self.way.cut()
            self.becomes_unknown(key)
            asked = {"function": "work", "arguments": {}}
            other = self.direct.begin(key, input=asked, on_unknown="rerun")
            assert isinstance(other, Claim)
            self.way.let_through()
            kit.eventually(lambda: operation.lost, "the heartbeat is told")
            with self.assertRaises(onlyonce.ClaimLost) as caught:
                operation.check()
            seen.append(caught.exception)
            self.direct.complete(other, "the other's")
            return "mine"

        with self.assertRaises(onlyonce.NotRecorded) as caught:
            work()
        self.assertEqual(caught.exception.value, "mine")
        self.assertIsInstance(caught.exception.__cause__, onlyonce.ClaimLost)
        self.assertEqual(len(seen), 1)
        self.assertEqual(work(), "the other's")

    def test_a_late_result_is_taken_while_nobody_began_anew(self) -> None:
        key = self.key()

        @self.client.once(key=key, lease="1s")
        def work() -> str:
            self.way.cut()
            self.becomes_unknown(key)
            self.way.let_through()
            return "late"

        self.assertEqual(work(), "late")
        self.assertEqual(work(), "late")

    def test_a_gateway_that_is_killed_and_comes_back_gets_the_result(self) -> None:
        gateway = kit.Gateway()
        self.addCleanup(gateway.close)
        self.way.lead_to(gateway.control)

        @self.client.once(key=self.key())
        def work() -> str:
            self.ran.append(1)
            gateway.kill()
            gateway.start()
            self.way.lead_to(gateway.control)
            return "done"

        self.assertEqual(work(), "done")
        self.assertEqual(work(), "done")
        self.assertEqual(self.ran, [1])

    def becomes_unknown(self, key: str) -> None:
        kit.eventually(lambda: self.gateway.operations(key)[0]["state"] == "unknown", "the lease passes")


class Blocks(kit.GatewayTest):
    def setUp(self) -> None:
        self.client = Client(self.gateway.control, retry=QUICK)

    def test_a_block_completes_and_is_replayed(self) -> None:
        key = self.key()
        with self.client.operation(key, input={"month": "10"}) as op:
            self.assertFalse(op.replayed)
            self.assertIs(onlyonce.current(), op)
            op.complete({"pages": 3}, metered={"provider": "openai", "model": "gpt-5-mini", "usage": {"input": 9}})
        with self.client.operation(key, input={"month": "10"}) as op:
            self.assertTrue(op.replayed)
            self.assertEqual((op.result, op.attempt), ({"pages": 3}, 2))
            with self.assertRaises(RuntimeError):
                op.complete(1)
        self.assertEqual(self.gateway.operations(key)[0]["metered"]["usage"]["input"], 9)

    def test_a_block_that_is_left_without_a_result_is_unknown(self) -> None:
        key = self.key()
        with self.assertLogs("onlyonce", "WARNING"):
            with self.client.operation(key):
                pass
        with self.assertRaises(onlyonce.Unknown):
            with self.client.operation(key):
                self.fail("it ran again")

    def test_a_block_can_be_released_and_failed(self) -> None:
        key = self.key()
        with self.client.operation(key) as op:
            op.release()
        with self.client.operation(key) as op:
            self.assertEqual(op.attempt, 2)
            op.fail()
            with self.assertRaises(RuntimeError):
                op.complete(1)
        self.assertEqual(self.client.get(op.id).state, "unknown")

    def test_an_operation_is_begun_once(self) -> None:
        operation = self.client.operation(self.key())
        with operation as op:
            op.complete(1)
        with self.assertRaises(RuntimeError):
            with operation:
                self.fail("it was begun again")


class Asynchronous(kit.GatewayTest):
    def setUp(self) -> None:
        self.client = Client(self.gateway.control, retry=QUICK)
        self.ran: List[Any] = []

    def test_coroutines_that_come_meanwhile_get_the_same(self) -> None:
        key = self.key()

        @self.client.once(key=key + "-{n}")
        async def work(n: int) -> str:
            self.ran.append(n)
            while self.gateway.operations(f"{key}-1")[0]["attempts"] < 5:
                await asyncio.sleep(0.01)
            return onlyonce.current().id

        async def all_of_them() -> List[str]:
            return list(await asyncio.gather(*(work(1) for _ in range(5))))

        results = asyncio.run(all_of_them())
        self.assertEqual(len(set(results)), 1)
        self.assertEqual(self.ran, [1])

    def test_a_task_that_is_cancelled_is_unknown(self) -> None:
        key = self.key()

        @self.client.once(key=key)
        async def work() -> None:
            self.ran.append(1)
            await asyncio.get_running_loop().create_future()

        async def cancelled() -> None:
            task = asyncio.ensure_future(work())
            while not self.ran:
                await asyncio.sleep(0.01)
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task
            with self.assertRaises(onlyonce.Unknown):
                await work()

        asyncio.run(cancelled())
        self.assertEqual(self.ran, [1])

    def test_blocks_heartbeats_and_lost_claims(self) -> None:
        asyncio.run(self._blocks())

    async def _blocks(self) -> None:
        client = self.client.to_async()
        key = self.key()
        async with client.operation(key, lease="2s") as op:
            first = (await client.get(op.id)).lease_until
            while True:
                until = (await client.get(op.id)).lease_until
                assert first is not None and until is not None
                if (until - first).total_seconds() > 2.2:
                    break
                await asyncio.sleep(0.02)
            await op.complete("done")
        async with client.operation(key) as op:
            self.assertEqual(op.result, "done")
        with self.assertRaises(onlyonce.DidNotRun):
            async with client.operation(self.key()) as op:
                raise onlyonce.DidNotRun("no")
        self.assertEqual((await client.get(op.id)).state, "released")
        async with client.operation(self.key(), lease="1s") as op:
            # Settled behind its back.
            await client.fail(op._open())
            while op.lost is None:
                await asyncio.sleep(0.02)
            with self.assertRaises(onlyonce.AlreadySettled):
                op.check()

    def test_a_blocking_function_needs_a_blocking_client(self) -> None:
        @onlyonce.once(key="k", client=self.client.to_async())
        def work() -> None:
            """Is never called."""

        with self.assertRaises(TypeError):
            work()


if __name__ == "__main__":
    unittest.main()
