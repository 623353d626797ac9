import assert from "node:assert/strict";
import { before, test } from "node:test";

import {
  ClaimLost,
  Client,
  DidNotRun,
  InFlight,
  KeyReused,
  LeaseOver,
  NotRecorded,
  NothingRan,
  Unknown,
  current,
  once,
} from "../src/index.js";
import { Line, QUICK, eventually, gateway, key, whole } from "./kit.js";

const file = whole();
let gw;
let client;

before(async () => {
  gw = await gateway(file);
  client = new Client(gw.control, { retry: QUICK });
});

const attempts = (k, n) => eventually(async () => (await gw.operations(k))[0].attempts === n, `${n} attempts`);
const unknown = (k) => eventually(async () => (await gw.operations(k))[0].state === "unknown", "the lease passes");

test("it runs once, and later calls get the result", async () => {
  const k = key();
  const ran = [];
  const report = client.once(
    async function report(month) {
      ran.push(month);
      return { month, at: new Date(0), nothing: undefined };
    },
    { key: (month) => `${k}-${month}` },
  );
  const first = await report("10");
  assert.deepEqual(first, { month: "10", at: "1970-01-01T00:00:00.000Z" });
  assert.deepEqual(await report("10"), first);
  await report("11");
  assert.deepEqual(ran, ["10", "11"]);
  assert.equal((await gw.operations(`${k}-10`))[0].path, "report");
});

test("an option that cannot be is found before anything runs", async () => {
  const ran = [];
  const work = () => ran.push(1);
  for (const options of [{ window: "1x" }, { window: 0 }, { window: "4000d" }, { wait: "soon" }, { lease: -1 }]) {
    assert.throws(() => client.once(work, { key: key(), ...options }), RangeError);
  }
  assert.throws(() => client.once(work, {}), /has no key: say by the option `key`/);
  assert.throws(() => client.once(() => 5, { key: key() }), /by the option `name`/);
  for (const window of ["1x", 0, Infinity]) {
    const k = key();
    await assert.rejects(client.operation(k, { window }, work), RangeError);
    assert.deepEqual(await gw.operations(k), []);
  }
  assert.deepEqual(ran, []);
});

test("i10: what ran and cannot be recorded is never released", async () => {
  for (const result of ["x".repeat(300 << 10), 10n]) {
    const k = key();
    let ran = 0;
    const work = () => {
      ran += 1;
      return result;
    };
    const once = client.once(work, { key: k, didNotRun: () => true });
    await assert.rejects(once(), NotRecorded);
    await assert.rejects(once(), Unknown);
    assert.equal(ran, 1);
  }
  const k = key();
  await assert.rejects(client.operation(k, { didNotRun: () => true }, (op) => op.complete(10n)), TypeError);
  assert.equal((await gw.operations(k))[0].state, "unknown");
  const [inner, outer] = [key(), key()];
  const fails = () => Promise.reject(new Error("half way"));
  await assert.rejects(client.operation(inner, {}, fails), /half way/);
  const around = () => client.operation(inner, {}, fails);
  await assert.rejects(client.operation(outer, { didNotRun: () => true }, around), Unknown);
  assert.equal((await gw.operations(outer))[0].state, "unknown");
});

test("those who come meanwhile wait, and get the same", async () => {
  const k = key();
  let ran = 0;
  async function work() {
    ran += 1;
    await attempts(k, 8);
    return current().id;
  }
  const calls = Array.from({ length: 8 }, () => client.once(work, { key: k })());
  const results = await Promise.all(calls);
  assert.equal(new Set(results).size, 1);
  assert.equal(ran, 1);
  assert.throws(current);
});

test("after an error nobody knows, and nothing runs again", async () => {
  const k = key();
  const ran = [];
  async function work() {
    ran.push(1);
    throw new RangeError("half way");
  }
  await assert.rejects(client.once(work, { key: k })(), RangeError);
  await assert.rejects(client.once(work, { key: k })(), Unknown);
  const again = client.once(async () => ran.push(2), { key: k, name: "work", onUnknown: "rerun" });
  assert.equal(await again(), 2);
  assert.equal(await again(), 2);
  assert.deepEqual(ran, [1, 2]);
});

test("who waits for one that dies may ask to run it again", async () => {
  const k = key();
  // Nobody keeps this claim up.
  await client.begin(k, { lease: "1s" });
  await assert.rejects(
    client.operation(k, {}, () => assert.fail("it ran")),
    Unknown,
  );
  const other = key();
  const { operation } = await client.begin(other, { lease: "1s" });
  await client.operation(other, { onUnknown: "rerun" }, async (op) => {
    assert.equal(op.id, operation);
    await op.complete("done");
  });
});

test("what did not run may run later", async () => {
  for (const error of [new DidNotRun("no seats left"), new RangeError("nobody there")]) {
    const failing = [error];
    async function work() {
      if (failing.length) throw failing.pop();
      return "done";
    }
    const run = client.once(work, { key: key(), didNotRun: (thrown) => thrown instanceof RangeError });
    await assert.rejects(run(), error);
    assert.equal(await run(), "done");
  }
});

test("that a part did not run says nothing of the whole", async () => {
  const k = key();
  const part = async () => {
    throw new DidNotRun("no seats left");
  };
  const runPart = client.once(part, { key: `${k}-part` });
  async function whole(catches) {
    if (!catches) return runPart();
    return runPart().catch((cause) => {
      throw new DidNotRun("and nothing before it", { cause });
    });
  }
  const run = client.once(whole, { key: () => k });
  await assert.rejects(run(true), /nothing before it/);
  assert.equal((await gw.operations(k))[0].state, "released");
  await assert.rejects(run(false), /no seats/);
  assert.equal((await gw.operations(`${k}-part`))[0].state, "released");
  assert.equal((await gw.operations(k))[0].state, "unknown");
});

test("who waits for what did not run does not run it", async () => {
  const k = key();
  let ran = 0;
  async function work() {
    ran += 1;
    await attempts(k, 2);
    throw new DidNotRun("no seats left");
  }
  const run = client.once(work, { key: k });
  const ends = await Promise.allSettled([run(), run()]);
  assert.deepEqual(ends.map((end) => end.reason.name).sort(), ["DidNotRun", "NothingRan"]);
  assert.ok(ends.some((end) => end.reason instanceof NothingRan));
  assert.equal(ran, 1);
});

test("other arguments, or another function, under the same key are refused", async () => {
  const k = key();
  const ran = [];
  const byOrder = { key: (order) => `${k}-${order}` };
  const charge = client.once(async function charge(order, amount) {
    ran.push(amount);
  }, byOrder);
  const refund = client.once(async function refund(order, amount) {
    ran.push(-amount);
  }, byOrder);
  await charge(17, 4200);
  await assert.rejects(charge(17, 4300), KeyReused);
  await assert.rejects(refund(17, 4200), KeyReused);
  assert.deepEqual(ran, [4200]);
});

test("arguments that are not JSON need an input", async () => {
  const order = new (class Order {
    id = 17;
  })();
  async function charge(order) {
    return order.id;
  }
  const k = key();
  await assert.rejects(client.once(charge, { key: () => k })(order), /say input/);
  assert.equal(await client.once(charge, { key: () => k, input: ({ id }) => id })(order), 17);
  assert.throws(() => once(charge, { key: "k" }), /the same for all arguments/);
  assert.throws(() => once(() => 1, { key: "k" }), /has no name/);
});

test("a result that is not JSON is not lost", async () => {
  const k = key();
  async function work() {
    return 10n;
  }
  await assert.rejects(client.once(work, { key: k })(), (error) => {
    assert.ok(error instanceof NotRecorded);
    assert.equal(error.value, 10n);
    return true;
  });
  await assert.rejects(client.once(work, { key: k })(), Unknown);
});

test("it can be told not to wait", async () => {
  const k = key();
  const claim = await client.begin(k, { input: { function: "work", arguments: [] } });
  const work = async () => assert.fail("it ran");
  await assert.rejects(client.once(work, { key: k, name: "work", wait: 0 })(), (error) => {
    assert.ok(error instanceof InFlight);
    assert.equal(error.operation, claim.operation);
    return true;
  });
});

test("heartbeats keep it for longer than its lease", async () => {
  await client.operation(key(), { lease: "2s" }, async (operation) => {
    const { leaseUntil } = await client.get(operation.id);
    const renewed = async () => (await client.get(operation.id)).leaseUntil - leaseUntil > 2200;
    await eventually(renewed, "a lease that ends after the first one");
    await operation.complete(1);
  });
});

test("a block that is left without a result is unknown; it can be released and failed", async () => {
  const k = key();
  let id;
  await client.operation(k, {}, (operation) => operation.release());
  await client.operation(k, {}, async (operation) => {
    id = operation.id;
    assert.equal(operation.attempt, 2);
    await operation.fail();
    await assert.rejects(operation.complete(1), /settled already/);
  });
  assert.equal((await client.get(id)).state, "unknown");
  const other = key();
  await client.operation(other, {}, () => {});
  await assert.rejects(
    client.operation(other, {}, () => assert.fail("it ran again")),
    Unknown,
  );
});

test("a claim that had passed before it was known is not begun", async (t) => {
  const line = await Line.to(t, gw.control);
  const k = key();
  line.holdAnswers();
  const work = () => assert.fail("it ran");
  const call = new Client(line.url, { retry: QUICK }).once(work, { key: k, name: "work", lease: "1s" })();
  call.catch(() => {});
  await line.held;
  await unknown(k);
  line.letThrough();
  await assert.rejects(call, LeaseOver);
});

test("a claim that was lost is found out, and nothing is recorded", async (t) => {
  const line = await Line.to(t, gw.control);
  const k = key();
  let reason;
  async function work() {
    const { signal } = current();
    line.cut();
    await unknown(k);
    const other = await client.begin(k, { input: { function: "work", arguments: [] }, onUnknown: "rerun" });
    line.letThrough();
    await eventually(() => signal.aborted, "the heartbeat is told");
    reason = signal.reason;
    await client.complete(other, "the other's");
    return "mine";
  }
  const run = new Client(line.url, { retry: QUICK }).once(work, { key: k, lease: "1s" });
  await assert.rejects(run(), (error) => {
    assert.ok(error instanceof NotRecorded && error.cause instanceof ClaimLost);
    assert.equal(error.value, "mine");
    return true;
  });
  assert.ok(reason instanceof ClaimLost);
  assert.equal(await run(), "the other's");
});

test("a late result is taken while nobody began anew", async (t) => {
  const line = await Line.to(t, gw.control);
  const k = key();
  async function work() {
    line.cut();
    await unknown(k);
    line.letThrough();
    return "late";
  }
  const run = new Client(line.url, { retry: QUICK }).once(work, { key: k, lease: "1s" });
  assert.equal(await run(), "late");
  assert.equal(await run(), "late");
});

test("a gateway that is killed and comes back gets the result", async (t) => {
  const first = await gateway(t);
  const line = await Line.to(t, first.control);
  async function work() {
    await first.kill();
    line.leadTo((await gateway(t, { data: first.data })).control);
    return "done";
  }
  const run = new Client(line.url, { retry: QUICK }).once(work, { key: key() });
  assert.equal(await run(), "done");
  assert.equal(await run(), "done");
});
