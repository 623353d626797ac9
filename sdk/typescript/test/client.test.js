import assert from "node:assert/strict";
import { before, test } from "node:test";

import {
  AlreadySettled,
  ClaimLost,
  Client,
  KeyReused,
  NoSuchOperation,
  Refused,
  ResultTooLarge,
  Unavailable,
  Unknown,
} from "../src/index.js";
import { RETRY, waitBefore } from "../src/protocol.js";
import { Line, QUICK, eventually, gateway, key, whole } from "./kit.js";

const file = whole();
let gw;
let client;

before(async () => {
  gw = await gateway(file);
  client = new Client(gw.control, { retry: QUICK });
});

test("a result is recorded and replayed", async () => {
  const k = key();
  const claim = await client.begin(k, { input: { month: "2026-10" }, name: "report" });
  assert.equal(claim.decision, "execute");
  assert.ok(claim.leaseUntil > new Date());
  const beat = await client.heartbeat(claim);
  assert.deepEqual([beat.state, beat.epoch], ["in_flight", claim.epoch]);
  const done = await client.complete(claim, { pages: 3 }, { window: "7d" });
  assert.deepEqual([done.state, done.key, done.name], ["completed", k, "report"]);
  assert.equal(done.expiresAt - done.completedAt, 7 * 86_400_000);
  const again = await client.begin(k, { input: { month: "2026-10" } });
  const { operation, attempt, epoch, result } = again;
  assert.deepEqual([again.decision, operation, attempt, result], ["replay", claim.operation, 2, { pages: 3 }]);
  assert.equal(epoch, claim.epoch);
  assert.deepEqual((await client.get(operation)).result, { pages: 3 });
});

test("a result that says nothing is a result", async () => {
  for (const result of [null, 0, false, "", [], {}, "\u2028\u{1f600}"]) {
    const k = key();
    await client.complete(await client.begin(k), result);
    assert.deepEqual((await client.begin(k)).result, result);
  }
  const k = key();
  await client.complete(await client.begin(k), undefined);
  assert.equal((await client.begin(k)).result, null);
});

test("a later claim has a higher epoch", async () => {
  const k = key();
  const first = await client.begin(k);
  await client.release(first);
  assert.ok((await client.begin(k)).epoch > first.epoch);
});

test("another input is refused", async () => {
  const k = key();
  const claim = await client.begin(k, { input: [] });
  await assert.rejects(client.begin(k, { input: {} }), (error) => {
    assert.ok(error instanceof KeyReused);
    assert.match(error.message, /another input. Nothing ran./);
    return true;
  });
  await client.release(claim);
});

test("who comes meanwhile is told, and may wait", async () => {
  const k = key();
  const claim = await client.begin(k);
  assert.deepEqual(await client.begin(k), { decision: "in_flight", operation: claim.operation });
  const waiter = client.begin(k, { wait: "30s" });
  await eventually(async () => (await gw.operations(k))[0].attempts === 3, "the third attempt waits");
  await client.complete(claim, "done");
  const found = await waiter;
  assert.deepEqual([found.decision, found.result], ["join", "done"]);
  assert.equal((await client.wait(claim.operation, "30s")).result, "done");
});

test("what was released is free, and who waited is told", async () => {
  const k = key();
  const claim = await client.begin(k);
  const waiter = client.begin(k, { wait: "30s" });
  await eventually(async () => (await gw.operations(k))[0].attempts === 2, "the second attempt waits");
  assert.equal((await client.release(claim)).state, "released");
  assert.deepEqual(await waiter, { decision: "released", operation: claim.operation });
  assert.equal((await client.begin(k)).decision, "execute");
});

test("an unknown outcome is told until it is asked to run again", async () => {
  const k = key();
  const claim = await client.begin(k);
  assert.equal((await client.fail(claim)).state, "unknown");
  await assert.rejects(client.begin(k), (error) => {
    assert.ok(error instanceof Unknown);
    assert.equal(error.operation, claim.operation);
    return true;
  });
  const again = await client.begin(k, { onUnknown: "rerun" });
  await assert.rejects(client.complete(claim, "late"), ClaimLost);
  await client.complete(again, "second");
  await assert.rejects(client.fail(again), AlreadySettled);
});

test("a claim whose answer was lost is found again", async (t) => {
  const line = await Line.to(t, gw.control);
  const through = new Client(line.url, { retry: QUICK });
  line.loseAnswers(2);
  const claim = await through.begin(key());
  assert.deepEqual([claim.decision, line.requests], ["execute", 3]);
  line.loseAnswers(1);
  assert.equal((await through.complete(claim, 1)).state, "completed");
  line.cut();
  await assert.rejects(through.get(claim.operation), Unavailable);
});

test("a gateway that is busy is asked again, with the same nonce", async () => {
  const nonces = [];
  const fetch = async (_, { body }) => {
    nonces.push(JSON.parse(body).nonce);
    return nonces.length < 3 ? new Response("{}", { status: 503 }) : Response.json({ decision: "in_flight" });
  };
  const found = await new Client("http://gateway", { fetch, retry: QUICK }).begin("k");
  assert.deepEqual(found, { decision: "in_flight", operation: undefined });
  assert.equal(nonces.length, 3);
  assert.equal(new Set(nonces).size, 1);
});

test("waits are spread, and what the gateway asks for is kept", () => {
  const retry = { ...RETRY, random: () => 1 };
  assert.deepEqual(
    [0, 1, 2, 3, 4, 5].map((n) => waitBefore(retry, n)),
    [500, 1000, 2000, 4000, 8000, 8000],
  );
  assert.equal(waitBefore({ ...RETRY, random: () => 0 }, 3), 0);
  for (const [text, wait] of [
    ["7", 7500],
    ["0", 500],
    ["soon", 500],
  ]) {
    assert.equal(waitBefore(retry, 0, { status: 503, headers: new Headers({ "retry-after": text }), body: "" }), wait);
  }
});

test("what is not there or not right is an error that says so", async () => {
  await assert.rejects(client.get("op_01a21c34-c8f7-72b6-948d-8b9e04c505ca"), NoSuchOperation);
  await assert.rejects(client.begin("two words"), (error) => error instanceof Refused && error.status === 400);
  const claim = await client.begin(key());
  await assert.rejects(client.complete(claim, "x".repeat(300_000)), ResultTooLarge);
  assert.equal((await client.complete(claim, "elsewhere")).state, "completed");
  assert.throws(() => new Client("127.0.0.1:8788"), TypeError);
  await assert.rejects(client.begin(key(), { lease: "soon" }), RangeError);
});
