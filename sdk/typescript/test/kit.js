/** What the tests stand on: the real binary, started as a user would, and processes that are killed at the end. */

import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once as event } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, connect } from "node:net";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../../..", import.meta.url));
export const BINARY = process.env.ONLYONCE_BINARY ?? join(ROOT, "target/debug/onlyonce");
export const NODE_MODULES = process.env.ONLYONCE_NODE_MODULES ?? join(ROOT, ".test-env/node_modules");

/** How long anything may take before it counts as stuck, in milliseconds. */
export const PATIENCE = 60_000;

/** Retries without long waits. */
export const QUICK = { backoff: 10, backoffMost: 50 };

for (const name of ["ONLYONCE_CONTROL", "ONLYONCE_CONTROL_TOKEN", "ONLYONCE_KEYS"]) delete process.env[name];

/** The packages that the tests are run against, which are installed elsewhere. */
export const installed = createRequire(join(NODE_MODULES, "x.js"));

/** What is started for all tests of a file ends after them. Called at the top of the file. */
export function whole() {
  const endings = [];
  after(async () => {
    for (const end of endings.reverse()) await end();
  });
  return { after: (end) => endings.push(end) };
}

/**
 * Starts `command` for the time of a test, and waits for lines in which it says where it listens; the addresses.
 *
 * @param {{ after: (end: () => any) => void }} t
 * @param {string[]} words
 * @param {number} addresses
 */
export async function start(t, words, addresses) {
  const child = spawn(BINARY, words, { stdio: ["ignore", "pipe", "inherit"] });
  const ended = event(child, "exit");
  const kill = async () => {
    child.kill("SIGKILL");
    await ended;
  };
  t.after(kill);
  const found = [];
  for await (const line of createInterface({ input: child.stdout })) {
    const address = /listening on (\S+)/.exec(line);
    if (address) found.push(address[1]);
    if (found.length === addresses) break;
  }
  if (found.length < addresses) throw new Error(`${words.join(" ")} did not start`);
  child.stdout.resume();
  return { addresses: found, kill };
}

/** The pretend paid provider, which counts what it executes. */
export async function sandbox(t) {
  const { addresses } = await start(t, ["sandbox", "--listen", "127.0.0.1:0"], 1);
  const url = addresses[0];
  return { url, ledger: async () => (await json(`${url}/_sandbox/ledger`)).entries };
}

/** The gateway under test, with a data folder of its own unless said. */
export async function gateway(t, { upstream = "http://127.0.0.1:9", preset = "generic", data = folder(t) } = {}) {
  const listen = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"];
  const words = ["serve", "--upstream", upstream, "--preset", preset, "--data", data, ...listen];
  const { addresses, kill } = await start(t, words, 2);
  const [url, control] = addresses;
  const operations = async (key) => (await json(`${control}/v1/operations?key=${encodeURIComponent(key)}`)).operations;
  return { url, control, kill, data, operations };
}

export async function json(url) {
  return (await fetch(url)).json();
}

/** A folder that is gone after the test. */
export function folder(t) {
  const path = mkdtempSync(join(tmpdir(), "onlyonce-sdk-"));
  t.after(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** A key that no other test has. */
export function key() {
  return `key-${randomBytes(6).toString("hex")}`;
}

/** Waits for a condition that only a poll can see; what it gave. */
export async function eventually(condition, what) {
  const until = performance.now() + PATIENCE;
  while (performance.now() < until) {
    const found = await condition();
    if (found) return found;
    await sleep(20);
  }
  throw new Error(`never: ${what}`);
}

/**
 * A line to the gateway that can be cut, held, and led elsewhere. Each connection carries one request; the answers of
 * the next requests can be lost, or held until they are let through.
 */
export class Line {
  requests = 0;
  #lose = 0;
  #isCut = false;
  #open = Promise.resolve();
  #letThrough = () => {};
  #held = [];
  #target;
  #server = createServer({ allowHalfOpen: true }, (socket) => this.#serve(socket));

  static async to(t, url) {
    const line = new Line();
    line.leadTo(url);
    line.#server.listen(0, "127.0.0.1");
    await event(line.#server, "listening");
    t.after(() => {
      line.letThrough();
      line.#server.close();
    });
    line.url = `http://127.0.0.1:${line.#server.address().port}`;
    return line;
  }

  leadTo(url) {
    this.#target = new URL(url);
  }

  loseAnswers(count) {
    this.#lose = count;
  }

  cut() {
    this.#isCut = true;
  }

  holdAnswers() {
    this.#open = new Promise((resolve) => {
      this.#letThrough = resolve;
    });
    this.held = new Promise((resolve) => this.#held.push(resolve));
  }

  letThrough() {
    this.#isCut = false;
    this.#letThrough();
  }

  async #serve(socket) {
    socket.on("error", () => {});
    const request = await readMessage(socket);
    this.requests += 1;
    if (this.#isCut || !request) return socket.destroy();
    const onward = connect(Number(this.#target.port), this.#target.hostname);
    onward.on("error", () => socket.destroy());
    const end = request.indexOf("\r\n\r\n");
    onward.write(request.subarray(0, end));
    // One exchange a connection, so that the end of the answer is its end.
    onward.write("\r\nConnection: close");
    onward.write(request.subarray(end));
    const pieces = [];
    for await (const piece of onward) pieces.push(piece);
    this.#held.splice(0).forEach((resolve) => resolve());
    await this.#open;
    if (this.#lose > 0) {
      this.#lose -= 1;
      return socket.destroy();
    }
    socket.end(Buffer.concat(pieces));
  }
}

function readMessage(socket) {
  return new Promise((resolve) => {
    let message = Buffer.alloc(0);
    socket.on("data", (piece) => {
      message = Buffer.concat([message, piece]);
      const end = message.indexOf("\r\n\r\n");
      if (end < 0) return;
      const length = /content-length: (\d+)/i.exec(message.subarray(0, end).toString("latin1"));
      if (message.length >= end + 4 + Number(length?.[1] ?? 0)) resolve(message);
    });
    socket.on("close", () => resolve(undefined));
  });
}
