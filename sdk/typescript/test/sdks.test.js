import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once as event } from "node:events";
import { readdirSync, unlinkSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { ActionCall, ActionKeys, WindowOver } from "../src/index.js";
import { folder, gateway, installed, key, sandbox } from "./kit.js";

const OpenAI = installed("openai");
const Anthropic = installed("@anthropic-ai/sdk");
const Stripe = installed("stripe");

const messages = [{ role: "user", content: "Hello" }];

/** How each SDK makes one paid call. */
const SDKS = {
  openai: {
    client: (base) => new OpenAI({ baseURL: `${base}/v1`, apiKey: "sk-test", maxRetries: 4 }),
    call: async (client, { size = 10, headers } = {}) =>
      (await client.chat.completions.create({ model: "m", max_tokens: size, messages }, { headers })).id,
  },
  anthropic: {
    client: (base) => new Anthropic({ baseURL: base, apiKey: "sk-test", maxRetries: 4 }),
    call: async (client, { size = 10, headers } = {}) =>
      (await client.messages.create({ model: "m", max_tokens: size, messages }, { headers })).id,
  },
  stripe: {
    client: (base) => {
      const { hostname, port } = new URL(base);
      return new Stripe("sk_test_1", { host: hostname, port, protocol: "http", maxNetworkRetries: 4 });
    },
    call: async (client, { size = 10, headers } = {}) => {
      const options = headers && { headers };
      return (await client.charges.create({ amount: 100 + size, currency: "eur", source: "tok_visa" }, options)).id;
    },
  },
};

/** One call in a process of its own. `killed` ends as soon as the answer is there, before anybody has it. */
async function child(how, name, base, keysFolder) {
  if (how === "killed") {
    const { answered } = ActionCall.prototype;
    ActionCall.prototype.answered = async function killed(...words) {
      await answered.apply(this, words);
      process.kill(process.pid, "SIGKILL");
      await new Promise(() => {});
    };
  }
  const sdk = SDKS[name];
  await sdk.call(await new ActionKeys(keysFolder).client(sdk.client(base), "a"));
}

async function run(...words) {
  const [code, signal] = await event(spawn(process.execPath, [fileURLToPath(import.meta.url), ...words]), "exit");
  return signal ?? code;
}

function tests(name, sdk) {
  /** A sandbox, a gateway before it, and keys of its own. */
  async function setting(t) {
    const provider = await sandbox(t);
    const gw = await gateway(t, { upstream: provider.url, preset: name });
    const keys = new ActionKeys(folder(t));
    const ran = async () => (await provider.ledger()).length;
    return { gw, keys, ran, client: sdk.client(gw.url) };
  }

  test(`${name}: an action runs once`, async (t) => {
    const { gw, keys, ran, client } = await setting(t);
    const first = await sdk.call(await keys.client(client, "a"));
    assert.equal(await sdk.call(await keys.client(client, "a")), first);
    const again = new ActionKeys(keys.folder.path);
    assert.equal(await sdk.call(await again.client(sdk.client(gw.url), "a")), first);
    assert.notEqual(await sdk.call(await keys.client(client, "b")), first);
    assert.equal(await ran(), 2);
    const { entry, note } = await keys.folder.look("a");
    assert.equal(note.answered, 200);
    assert.ok(note.expiresAt > new Date());
    assert.equal((await gw.operations(entry.key))[0].attempts, 3);
    // The client itself is left as it was.
    assert.notEqual(await sdk.call(client), await sdk.call(client));
  });

  test(`${name}: the SDK's own retries carry the key`, async (t) => {
    const { gw, keys, client } = await setting(t);
    const headers = { "X-Sandbox-Fault": "status:503", "X-Sandbox-Times": "1", "X-Sandbox-Tag": key() };
    await sdk.call(await keys.client(client, "a"), { headers });
    const [operation] = await gw.operations((await keys.folder.look("a")).entry.key);
    assert.deepEqual([operation.state, operation.attempts], ["completed", 2]);
  });

  test(`${name}: another request is refused, at once, and nothing is sent`, async (t) => {
    const { gw, keys, client } = await setting(t);
    await sdk.call(await keys.client(client, "a"));
    await assert.rejects(sdk.call(await keys.client(client, "a"), { size: 11 }), (error) => {
      assert.match(error.message, /a was used for another request/);
      assert.equal(error.status ?? error.statusCode, 422);
      return true;
    });
    assert.equal((await gw.operations((await keys.folder.look("a")).entry.key))[0].attempts, 1);
  });

  test(`${name}: nothing is sent once the window may be over`, async (t) => {
    const { keys, ran, client } = await setting(t);
    let now = 1_800_000_000_000;
    let looks = 0;
    const clocked = new ActionKeys(keys.folder.path, { clock: () => ((looks += 1), now) });
    const late = await clocked.client(client, "a");
    await sdk.call(late);
    // What the gateway told is long past by this clock; so look at the configured window alone.
    for (const file of readdirSync(keys.folder.path)) {
      if (file.endsWith(".note")) unlinkSync(join(keys.folder.path, file));
    }
    now += 24 * 3_600_000;
    await assert.rejects(clocked.client(client, "a"), WindowOver);
    looks = 0;
    await assert.rejects(sdk.call(late), /The server may have forgotten the key of a/);
    // For the entry and for the window: the SDK has not tried again.
    assert.equal(looks, 2);
    assert.equal(await ran(), 1);
  });

  test(`${name}: an unknown outcome is noted and never tried again`, async (t) => {
    const { gw, keys, ran, client } = await setting(t);
    const headers = { "X-Sandbox-Fault": "reset-before-head" };
    for (let n = 0; n < 2; n += 1) {
      const error = await sdk.call(await keys.client(client, "a"), { headers }).catch((thrown) => thrown);
      assert.equal(error.status ?? error.statusCode, 502);
    }
    assert.equal(await ran(), 1);
    const { entry, note } = await keys.folder.look("a");
    assert.equal(note.answered, null);
    assert.equal((await gw.operations(entry.key))[0].attempts, 2);
  });

  test(`${name}: a process that is killed goes on with its key`, async (t) => {
    const { gw, keys, ran } = await setting(t);
    assert.equal(await run("killed", name, gw.url, keys.folder.path), "SIGKILL");
    assert.equal(await ran(), 1);
    assert.equal(await run("whole", name, gw.url, keys.folder.path), 0);
    assert.equal(await ran(), 1);
  });
}

if (process.argv.length === 6) {
  await child(...process.argv.slice(2));
} else {
  for (const [name, sdk] of Object.entries(SDKS)) tests(name, sdk);

  test("openai: a stream is replayed", async (t) => {
    const provider = await sandbox(t);
    const gw = await gateway(t, { upstream: provider.url, preset: "openai" });
    const keys = new ActionKeys(folder(t));
    const texts = [];
    for (let n = 0; n < 2; n += 1) {
      const client = await keys.client(SDKS.openai.client(gw.url), "a");
      const stream = await client.chat.completions.create({ model: "m", messages, stream: true });
      let text = "";
      for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
      texts.push(text);
    }
    assert.equal(texts[0], texts[1]);
    assert.ok(texts[0].length > 0);
    assert.equal((await provider.ledger()).length, 1);
  });

  test("a client that is not known is refused", async (t) => {
    await assert.rejects(new ActionKeys(folder(t)).client({}, "a"), TypeError);
  });
}
