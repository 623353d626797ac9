import assert from "node:assert/strict";
import { execFile, execFileSync } from "node:child_process";
import {
  chmodSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { ActionKeys, ActionReused, ClockWentBack, KeyPresent, KeyFolder, KeysError, WindowOver } from "../src/index.js";
import { derived, digest } from "../src/blake3.js";
import { BINARY, folder, sandbox } from "./kit.js";

const URL = "http://127.0.0.1:9/v1/charges";
const HOUR = 3_600_000;

/** Runs `onlyonce call`; its exit code and what it said. */
function call(keys, ...words) {
  return new Promise((resolve) => {
    execFile(BINARY, ["call", "--keys", keys, "-v", ...words], (error, _, said) => {
      resolve({ code: error ? error.code : 0, said });
    });
  });
}

test("it hashes as the reference does", () => {
  // Of the official test vectors: the input is 0, 1, ... 250, 0, 1, ...
  const input = (length) => Uint8Array.from({ length }, (_, n) => n % 251);
  const vectors = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1023: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    2049: "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030",
    31744: "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47",
  };
  for (const [length, hash] of Object.entries(vectors)) assert.equal(digest(input(Number(length))), hash, length);
  const context = "BLAKE3 2019-12-27 16:29:52 test vectors context";
  assert.equal(derived(context, input(0)), "2cc39783c223154fea8dfb7c1b1660f2ac2dcbd1c1de8277b0b0dd39b7e50d7d");
  assert.equal(derived(context, input(1025)), "effaa245f065fbf82ac186839a249707c3bddf6d3fdda22d1b95a3c970379bcb");
});

test("a key of onlyonce call is used by Node, and one of Node by onlyonce call", async (t) => {
  const { url, ledger } = await sandbox(t);
  const echo = `${url}/v1/echo`;
  const path = folder(t);
  const keys = new ActionKeys(path);
  assert.equal((await call(path, "--action", "order 17: \u00e9/charge", "-d", "a=1", echo)).code, 0);
  const theirs = await (await keys.call("order 17: \u00e9/charge")).key("POST", echo, "a=1");
  assert.equal((await keys.folder.look("order 17: \u00e9/charge")).note.answered, 200);

  const action = await keys.call("order-18");
  const ours = await action.key("POST", echo, "a=1");
  await action.answered(200, (name) =>
    name === "onlyonce-expires" ? new Date(Date.now() + HOUR).toISOString() : null,
  );
  const answer = await call(path, "--action", "order-18", "-d", "a=1", echo);
  assert.equal(answer.code, 0, answer.said);
  assert.match(answer.said, new RegExp(`kept key ${ours}`));
  assert.deepEqual(
    (await ledger()).map((entry) => entry.key),
    [theirs, ours],
  );

  assert.equal((await call(path, "--action", "order-18", "-d", "a=2", echo)).code, 7);
  await (await keys.call("order-18")).key("POST", echo, "a=1");
  await action.answered(201, (name) => (name === "onlyonce-expires" ? new Date().toISOString() : null));
  assert.equal((await call(path, "--action", "order-18", "-d", "a=1", echo)).code, 6);
  assert.equal((await ledger()).length, 2);

  assert.equal((await call(path, "--forget", "--action", "order-18")).code, 0);
  assert.equal(await keys.forget("order-18"), false);
  assert.equal(await keys.forget("order 17: \u00e9/charge"), true);
});

test("an action has one key, whoever asks", async (t) => {
  const path = folder(t);
  const ask = async () => (await new ActionKeys(path).call("a")).key("POST", URL);
  const found = await Promise.all(Array.from({ length: 32 }, ask));
  assert.equal(new Set(found).size, 1);
  assert.deepEqual(readdirSync(join(path, "new")), []);
});

test("a damaged key is an error and never a new key", async (t) => {
  const keys = new ActionKeys(folder(t));
  await (await keys.call("a")).key("POST", URL);
  const file = keys.folder.keyFile("a");
  const whole = readFileSync(file);
  for (let at = 0; at < whole.length - 1; at += 1) {
    const damaged = Buffer.from(whole);
    damaged[at] ^= 1;
    writeFileSync(file, damaged);
    await assert.rejects(keys.call("a"), KeysError, `byte ${at}`);
  }
  for (const damage of ["", "null\n", whole.subarray(0, -20), Buffer.concat([whole, whole])]) {
    writeFileSync(file, damage);
    await assert.rejects(keys.call("a"), /A new key could run the action twice/);
  }
  writeFileSync(file, whole.toString().replace('"format":1', '"format":2'));
  await assert.rejects(keys.call("a"), /newer version/);
  writeFileSync(file, whole);
  renameSync(file, keys.folder.keyFile("b"));
  await assert.rejects(keys.call("b"), /another action/);
});

test("what is no file in a key's place is an error at once", async (t) => {
  const keys = new ActionKeys(folder(t));
  const file = keys.folder.keyFile("a");
  await (await keys.call("b")).key("POST", URL);
  const makes = [() => symlinkSync("/nonexistent/place", file), () => execFileSync("mkfifo", [file]), () => mkdirSync(file)];
  for (const make of makes) {
    make();
    await assert.rejects(async () => (await keys.call("a")).key("POST", URL), /is damaged/);
    rmSync(file, { recursive: true });
  }
  await (await keys.call("a")).key("POST", URL);
});

test("what cannot be kept sends nothing", async (t) => {
  const file = join(folder(t), "file");
  writeFileSync(file, "");
  const call = await new ActionKeys(file).call("a").catch((error) => error);
  assert.ok(call instanceof KeysError);
  await assert.rejects(new ActionKeys(join(file, "keys")).fetch("a")(URL, { method: "POST" }), KeysError);
});

test("it is for its owner alone, and what a crash left is removed", async (t) => {
  const path = join(folder(t), "state/keys");
  await (await new ActionKeys(path).call("a")).key("POST", URL);
  const left = join(path, "new/left");
  writeFileSync(left, "");
  utimesSync(left, new Date(0), new Date(0));
  chmodSync(left, 0o600);
  for (const name of ["", ...readdirSync(path, { recursive: true })]) {
    assert.equal(statSync(join(path, name)).mode & 0o077, 0, name);
  }
  await new KeyFolder(path).take("b", { key: "k", fingerprint: "f", madeAt: new Date() });
  assert.deepEqual(readdirSync(join(path, "new")), []);
});

test("another method, URL or body is another request; a name that names nothing is refused", async (t) => {
  const keys = new ActionKeys(folder(t));
  const ask = async (...request) => (await keys.call("a")).key(...request);
  await ask("POST", `${URL}?x=1#here`, "body");
  await ask("POST", `${URL}?x=1`, Buffer.from("body"));
  for (const request of [
    ["PUT", `${URL}?x=1`, "body"],
    ["POST", URL, "body"],
    ["POST", `${URL}?x=1b`, "ody"],
    ["POST", `${URL}?x=1`, "bodz"],
  ]) {
    await assert.rejects(ask(...request), ActionReused);
  }
  for (const action of ["", "x".repeat(1025), "a\nb", "a\u0085b", "\ud800"]) {
    await assert.rejects(keys.call(action), TypeError);
  }
});

test("nothing is sent once the window may be over, whatever the clock does", async (t) => {
  const made = 1_800_000_000_000;
  let now = made;
  const path = folder(t);
  const ask = async (action = "a", window = "24h") => {
    const call = await new ActionKeys(path, { window, clock: () => now }).call(action);
    await call.key("POST", URL);
    return call;
  };
  const first = await ask();
  const last = made + 24 * HOUR - 60_000;
  now = last - 1;
  await ask();
  for (now of [last, last + 1, last + 720 * HOUR]) {
    await assert.rejects(ask(), (error) => error instanceof WindowOver && +error.endedAt === made + 24 * HOUR);
    await assert.rejects(first.key("POST", URL), WindowOver);
  }
  now = made - 60_000;
  await ask();
  now = made - 60_001;
  await assert.rejects(ask(), ClockWentBack);

  now = made;
  await (
    await ask("b")
  ).answered(200, (name) => (name === "onlyonce-expires" ? new Date(made + HOUR).toISOString() : null));
  now = made + HOUR - 60_001;
  await ask("b");
  now += 1;
  await assert.rejects(ask("b"), /The server's last answer was 200/);

  now = made;
  await ask("c", "1m");
  now += 53_999;
  await ask("c", "1m");
  now += 1;
  await assert.rejects(ask("c", "1m"), WindowOver);
  await assert.rejects(ask("d", 0), /Give the keys a window/);
});

test("what counts is noted", async (t) => {
  const problem = { "content-type": "application/problem+json" };
  const unknown = JSON.stringify({ type: "/problems/outcome-unknown" });
  const keys = new ActionKeys(folder(t));
  for (const [status, headers, body, noted] of [
    [200, {}, undefined, 200],
    [402, {}, undefined, 402],
    [503, {}, undefined, undefined],
    [409, {}, undefined, undefined],
    [503, { "onlyonce-status": "replayed" }, undefined, 503],
    [503, { "idempotent-replayed": "true" }, undefined, 503],
    [503, { "x-should-retry": "false" }, undefined, 503],
    [402, { "stripe-should-retry": "true" }, undefined, undefined],
    [502, { ...problem, "x-should-retry": "false" }, unknown, null],
    [502, { "x-should-retry": "false" }, unknown, 502],
  ]) {
    const action = `${status} ${JSON.stringify(headers)}`;
    const call = await keys.call(action);
    await call.key("POST", URL);
    await call.answered(status, (name) => headers[name], body);
    assert.equal((await keys.folder.look(action)).note?.answered, noted, action);
  }
  const done = await keys.call("done");
  await done.key("POST", URL);
  await done.answered(200, () => null);
  await done.answered(401, () => null);
  assert.equal((await keys.folder.look("done")).note.answered, 200);
});

test("fetch sends the key of its action, and none beside it", async (t) => {
  const { url, ledger } = await sandbox(t);
  const keys = new ActionKeys(folder(t));
  const init = { method: "POST", body: "hello", headers: { "content-type": "text/plain" } };
  for (let n = 0; n < 2; n += 1) {
    const answer = await (await keys.fetch("a")(`${url}/v1/echo`, init)).json();
    assert.deepEqual([answer.body, answer.content_type], ["hello", "text/plain"]);
  }
  const [one, two] = await ledger();
  assert.equal(one.key, two.key);
  assert.equal(one.key, (await keys.folder.look("a")).entry.key);
  const other = new Request(`${url}/v1/echo`, { ...init, headers: { "Idempotency-Key": "mine" } });
  await assert.rejects(keys.fetch("b")(other), KeyPresent);
  assert.equal((await ledger()).length, 2);
});
