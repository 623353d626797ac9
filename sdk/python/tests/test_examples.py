"""The examples, as the processes that they are, killed where it hurts."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import signal
import threading
import time
import unittest
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any, Callable, Dict, List, Tuple

import psycopg
import redis

import kit
import servers

HERE = kit.ROOT / "sdk/python/tests"
COMPLETE = "onlyonce:Operation.complete"
BEGIN = "onlyonce:Client.operation"


class Webhooks(kit.GatewayTest):
    SECRET = b"a secret that both sides know"

    def setUp(self) -> None:
        self.book = self.folder() / "orders.jsonl"
        self.receive()

    def receive(self, *kill: str) -> kit.Process:
        """Starts a receiver, which is killed as `kill_in.py` is told."""
        words = [str(kit.EXAMPLES / "webhook_receiver.py"), "127.0.0.1:0", self.gateway.control, str(self.book)]
        if kill:
            words = [str(HERE / "kill_in.py"), *kill, *words]
        secret = "whsec_" + base64.b64encode(self.SECRET).decode()
        receiver = kit.Process(kit.python(*words), env=kit.environment(WEBHOOK_SECRET=secret, LEASE="2s"))
        self.addCleanup(receiver.close)
        self.url = receiver.wait_for(r"listening on (\S+)")[1]
        return receiver

    def deliver(self, id: str, event: Any, secret: bytes = SECRET) -> Tuple[int, Any]:
        body, timestamp = json.dumps(event).encode(), str(int(time.time()))
        signed = hmac.new(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        headers = {
            "webhook-id": id,
            "webhook-timestamp": timestamp,
            "webhook-signature": "v1," + base64.b64encode(signed).decode(),
        }
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url, body, headers), timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def shipped(self) -> List[Any]:
        return [json.loads(line)["order"] for line in self.book.read_text().splitlines()]

    def test_an_event_is_acted_on_once_however_often_it_is_delivered(self) -> None:
        one, two = self.key(), self.key()
        self.assertEqual(self.deliver(one, {"order": 17}), (200, {"replayed": False, "shipped": 17}))
        self.assertEqual(self.deliver(one, {"order": 17}), (200, {"replayed": True, "shipped": 17}))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: self.deliver(two, {"order": 18}), range(8)))
        self.assertEqual({status for status, _ in answers}, {200})
        self.assertEqual(sum(not answer["replayed"] for _, answer in answers), 1)
        self.assertEqual(self.shipped(), [17, 18])

    def deliver_to_one_that_is_killed(self, when: str, id: str, event: Any) -> None:
        receiver = self.receive(COMPLETE, when)
        with self.assertRaises((OSError, http.client.HTTPException)):
            self.deliver(id, event)
        self.assertEqual(receiver.finish(), -signal.SIGKILL, receiver.lines)
        self.receive()

    def test_a_receiver_killed_before_its_answer_has_acted_on_the_event(self) -> None:
        id = self.key()
        self.deliver_to_one_that_is_killed("after", id, {"order": 23})
        for _ in range(2):
            self.assertEqual(self.deliver(id, {"order": 23}), (200, {"replayed": True, "shipped": 23}))
        self.assertEqual(self.shipped(), [23])

    def test_a_receiver_killed_before_its_result_acts_on_nothing_again(self) -> None:
        id = self.key()
        self.deliver_to_one_that_is_killed("before", id, {"order": 24})
        for _ in range(2):
            status, answer = self.deliver(id, {"order": 24})
            self.assertEqual(status, 500, answer)
            self.assertIn("unknown", answer["error"])
        self.assertEqual(self.shipped(), [24])

    def test_another_event_under_the_same_id_is_refused(self) -> None:
        id = self.key()
        self.deliver(id, {"order": 19})
        self.assertEqual(self.deliver(id, {"order": 20})[0], 400)
        self.assertEqual(self.shipped(), [19])

    def test_a_signed_event_that_is_about_no_order_is_refused_and_begins_nothing(self) -> None:
        id = self.key()
        for event in ({"note": "none"}, [17], "17"):
            self.assertEqual(self.deliver(id, event), (400, {"error": "the event has no order"}))
        self.assertEqual(self.deliver(id, {"order": 22})[1], {"replayed": False, "shipped": 22})
        self.assertEqual(self.shipped(), [22])

    def test_what_is_not_signed_uses_up_no_id(self) -> None:
        id = self.key()
        self.assertEqual(self.deliver(id, {"order": 21}, b"another secret")[0], 401)
        self.assertEqual(self.deliver(id, {"order": 21})[1], {"replayed": False, "shipped": 21})


class PaidApis:
    """A model that asks for a charge, then for an e-mail, and is then done; and what these tools call.

    It knows nothing of keys: each request is one more execution, with ids of its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.executed: Dict[str, List[Any]] = {"/v1/chat/completions": [], "/v1/charges": [], "/v1/emails": []}

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        asked = json.loads(getattr(handler, "body"))
        with self._lock:
            self.executed[handler.path].append(asked)
        answer: Any = {"id": uuid.uuid4().hex}
        if handler.path == "/v1/chat/completions":
            answer = {"choices": [{"message": self.message(asked["messages"])}]}
        kit.answer(handler, 200, json.dumps(answer).encode())

    def message(self, messages: List[Any]) -> Any:
        answered = [message for message in messages if message["role"] == "tool"]
        calls: List[Tuple[str, Any]] = [
            ("charge", {"customer": "c-1", "amount": 42}),
            ("send_email", {"to": "c-1", "text": "42 dollars"}),
        ]
        if len(answered) == len(calls):
            return {"role": "assistant", "content": "Done: " + json.loads(answered[0]["content"])["id"]}
        name, arguments = calls[len(answered)]
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": f"call_{uuid.uuid4().hex}", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}

    def counts(self) -> List[int]:
        return [len(asked) for asked in self.executed.values()]


class Agents(kit.GatewayTest):
    def agent(self, run: str, keys: str, url: str, control: str, kill_at: int) -> kit.Process:
        script = str(kit.EXAMPLES / "agent.py")
        command = kit.python(HERE / "kill_at.py", str(kill_at), script, run, url, control, keys)
        return kit.Process(command, env=kit.environment(LEASE="2s"))

    def test_killed_at_each_effect_and_restarted_each_thing_happens_once(self) -> None:
        apis = PaidApis()
        with kit.serving(apis.serve) as upstream:
            gateway = kit.Gateway(upstream)
            self.addCleanup(gateway.close)
            keys = str(self.folder())
            whole = self.agent("run-0", keys, gateway.url, gateway.control, 0)
            self.addCleanup(whole.close)
            effects = int(whole.wait_for(r"effects (\d+)")[1])
            self.assertEqual(apis.counts(), [3, 1, 1])
            # Three answers of the model; begin, effect and complete of two tools: all over connections of their own.
            self.assertGreater(effects, 20)
            for at in range(1, effects + 1):
                with self.subTest(at=at):
                    self.killed_and_restarted(apis, gateway, keys, at)

    def killed_and_restarted(self, apis: PaidApis, gateway: kit.Gateway, keys: str, at: int) -> None:
        apis.__init__()  # type: ignore[misc]
        run = f"run-{at}"
        killed = self.agent(run, keys, gateway.url, gateway.control, at)
        try:
            self.assertEqual(killed.finish(), -signal.SIGKILL, killed.lines)
        finally:
            killed.close()
        restarted = self.agent(run, keys, gateway.url, gateway.control, 0)
        try:
            restarted.wait_for("Done: ")
        finally:
            restarted.close()
        self.assertEqual(apis.counts(), [3, 1, 1], f"killed at effect {at}")


class Queues(kit.GatewayTest):
    """What the consumers of both queues are put through: the work is counted by a server that knows no keys."""

    @classmethod
    def setUpClass(cls) -> None:
        """Each queue counts its jobs from 1, and so has a gateway of its own."""

    def setUp(self) -> None:
        self.gateway = kit.Gateway()
        self.addCleanup(self.gateway.close)
        self.worked: List[Any] = []
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def work(self, handler: BaseHTTPRequestHandler) -> None:
        self.begun.set()
        self.go.wait(kit.PATIENCE)
        self.worked.append(json.loads(getattr(handler, "body")))
        kit.answer(handler, 200, json.dumps({"n": len(self.worked)}).encode())

    def start(self, script: str, server: str, effect: str, *kill: str) -> kit.Process:
        words = [str(kit.EXAMPLES / script), server, self.gateway.control, effect]
        if kill:
            words = [str(HERE / "kill_in.py"), *kill, *words]
        process = kit.Process(kit.python(*words), env=kit.environment(ONE_ROUND="1", IDLE_MS="0", LEASE="1s"))
        self.addCleanup(process.close)
        return process

    def consume(self, script: str, server: str, effect: str, *kill: str) -> kit.Process:
        process = self.start(script, server, effect, *kill)
        self.assertEqual(process.finish(), -signal.SIGKILL if kill else 0, process.lines)
        return process

    def consume_by_two(self, script: str, server: str, key: str, shows_again: Callable[[], object]) -> None:
        """One consumer is at the job `key` when another one takes it too; then they go on against each other."""
        self.go.clear()
        with kit.serving(self.work) as effect:
            first = self.start(script, server, effect)
            self.assertTrue(self.begun.wait(kit.PATIENCE))
            shows_again()
            second = self.start(script, server, effect)
            kit.eventually(lambda: self.gateway.operations(key)[0]["attempts"] == 2, "the second one waits")
            self.go.set()
            for consumer in (first, second):
                self.assertEqual(consumer.finish(), 0, consumer.lines)


class RedisStreams(Queues):
    def setUp(self) -> None:
        super().setUp()
        self.server = servers.Redis()
        self.addCleanup(self.server.close)
        self.redis = redis.Redis.from_url(self.server.url, decode_responses=True)
        self.addCleanup(self.redis.close)

    def pending(self) -> int:
        return int(self.redis.xpending("orders", "shipping")["pending"])

    def test_a_consumer_killed_before_its_acknowledgement_has_done_the_work(self) -> None:
        for order in ("17", "18"):
            self.redis.xadd("orders", {"order": order})
        with kit.serving(self.work) as effect:
            self.consume("redis_consumer.py", self.server.url, effect, COMPLETE, "after")
            self.assertEqual((self.worked, self.pending()), ([{"order": "17"}], 2))
            self.consume("redis_consumer.py", self.server.url, effect)
        self.assertEqual(self.worked, [{"order": "17"}, {"order": "18"}])
        self.assertEqual(self.pending(), 0)

    def test_a_consumer_killed_before_it_begins_has_done_nothing(self) -> None:
        self.redis.xadd("orders", {"order": "20"})
        with kit.serving(self.work) as effect:
            self.consume("redis_consumer.py", self.server.url, effect, BEGIN, "before")
            self.assertEqual((self.worked, self.pending()), ([], 1))
            self.consume("redis_consumer.py", self.server.url, effect)
        self.assertEqual((self.worked, self.pending()), ([{"order": "20"}], 0))

    def test_two_consumers_at_the_same_messages_do_each_once(self) -> None:
        orders = [str(number) for number in range(8)]
        ids: List[Any] = [self.redis.xadd("orders", {"order": order}) for order in orders]
        # The second one takes over all that the first one has not acknowledged.
        self.consume_by_two("redis_consumer.py", self.server.url, f"orders/{ids[0]}", lambda: None)
        self.assertEqual(sorted(done["order"] for done in self.worked), orders)
        self.assertEqual(self.pending(), 0)

    def test_a_consumer_killed_before_its_result_leaves_the_message_and_runs_nothing_again(self) -> None:
        self.redis.xadd("orders", {"order": "19"})
        with kit.serving(self.work) as effect:
            self.consume("redis_consumer.py", self.server.url, effect, COMPLETE, "before")
            said = self.consume("redis_consumer.py", self.server.url, effect)
        self.assertIn("acknowledged 0", said.lines)
        self.assertEqual((self.worked, self.pending()), ([{"order": "19"}], 1))


class PostgresQueue(Queues):
    def setUp(self) -> None:
        super().setUp()
        self.server = servers.Postgres()
        self.addCleanup(self.server.close)

    def query(self, text: str, *values: Any) -> List[Any]:
        with psycopg.connect(self.server.url, autocommit=True) as database:
            cursor = database.execute(text.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def test_a_consumer_killed_before_its_result_leaves_the_job_and_runs_nothing_again(self) -> None:
        with kit.serving(self.work) as effect:
            self.consume("postgres_consumer.py", self.server.url, effect)
            self.query("insert into jobs (payload) values (%s)", json.dumps({"order": 19}))
            self.consume("postgres_consumer.py", self.server.url, effect, COMPLETE, "before")
            self.query("update jobs set visible_at = now()")
            said = self.consume("postgres_consumer.py", self.server.url, effect)
        self.assertIn("done 0", said.lines)
        self.assertEqual((self.worked, self.query("select count(*) from jobs")), ([{"order": 19}], [(1,)]))

    def test_a_consumer_killed_before_it_begins_has_done_nothing(self) -> None:
        with kit.serving(self.work) as effect:
            self.consume("postgres_consumer.py", self.server.url, effect)
            self.query("insert into jobs (payload) values (%s)", json.dumps({"order": 20}))
            self.consume("postgres_consumer.py", self.server.url, effect, BEGIN, "before")
            self.assertEqual((self.worked, self.query("select count(*) from jobs")), ([], [(1,)]))
            self.query("update jobs set visible_at = now()")
            self.consume("postgres_consumer.py", self.server.url, effect)
        self.assertEqual((self.worked, self.query("select count(*) from jobs")), ([{"order": 20}], [(0,)]))

    def test_two_consumers_at_the_same_job_do_it_once(self) -> None:
        with kit.serving(self.work) as effect:
            self.consume("postgres_consumer.py", self.server.url, effect)
        orders = list(range(8))
        for order in orders:
            self.query("insert into jobs (payload) values (%s)", json.dumps({"order": order}))
        shows_again = lambda: self.query("update jobs set visible_at = now()")
        self.consume_by_two("postgres_consumer.py", self.server.url, "jobs/1", shows_again)
        self.assertEqual(sorted(done["order"] for done in self.worked), orders)
        self.assertEqual(self.query("select count(*) from jobs"), [(0,)])

    def test_a_consumer_killed_before_it_takes_the_job_out_has_done_it(self) -> None:
        with kit.serving(self.work) as effect:
            self.consume("postgres_consumer.py", self.server.url, effect)
            for order in (17, 18):
                self.query("insert into jobs (payload) values (%s)", json.dumps({"order": order}))
            self.consume("postgres_consumer.py", self.server.url, effect, COMPLETE, "after")
            self.assertEqual((self.worked, self.query("select count(*) from jobs")), ([{"order": 17}], [(2,)]))
            # The time-out passes.
            self.query("update jobs set visible_at = now()")
            self.consume("postgres_consumer.py", self.server.url, effect)
        self.assertEqual(self.worked, [{"order": 17}, {"order": 18}])
        self.assertEqual(self.query("select count(*) from jobs"), [(0,)])


if __name__ == "__main__":
    unittest.main()
