/** The client of the operations API. */

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";

import * as errors from "./errors.js";
import { once } from "./once.js";
import { Operation, during } from "./operation.js";
import * as protocol from "./protocol.js";
import { millis, spanText, windowOf } from "./time.js";
import { Tools } from "./tools.js";

/** @import { Claim, Decision, Replay, Retry, Work, Answer } from "./protocol.js" */
/** @import { Span } from "./time.js" */
/** @import { OnceOptions } from "./once.js" */
/** @import { Tool, ToolOptions } from "./tools.js" */

/**
 * @typedef {object} ClientOptions
 * @property {string} [token] The control listener's token with the right `work`; else `$ONLYONCE_CONTROL_TOKEN`.
 * @property {string} [tenant] Whose the keys are; else what the token says.
 * @property {string} [namespace] Where the keys are unique, within the tenant; else `work`.
 * @property {Partial<Retry>} [retry] How often a request is tried. All are safe to send twice.
 * @property {typeof globalThis.fetch} [fetch] In place of Node's.
 */

/**
 * @typedef {object} BeginOptions
 * @property {unknown} [input] JSON that says what is to be done. Another input under the same key is refused.
 * @property {Span} [wait] How long to wait where somebody else executes it.
 * @property {Span} [lease] How long this worker is believed to be at it without a heartbeat; 30 s.
 * @property {"report" | "rerun"} [onUnknown] `"rerun"` claims anew where nobody knows whether it ran: it may run twice.
 * @property {string} [nonce] Drawn for this one begin unless given. The same one finds a claim whose answer was lost.
 * @property {string} [namespace] In place of the client's.
 * @property {string} [name] What it is, for people who look at a list.
 */

/**
 * What `operation` takes: that of `begin`, where `wait` is 10 minutes unless said, and how it is settled.
 *
 * @typedef {object} MoreOptions
 * @property {Span} [window] How long the result answers, from its end; 24 h unless said.
 * @property {(error: Error) => boolean} [didNotRun] Which errors say that nothing ran, beside `DidNotRun`. It is not
 *   asked about errors of this package, nor about anything that comes after the result.
 */

/** @typedef {Omit<BeginOptions, "nonce"> & MoreOptions} OperationOptions */

// The longest that one request waits; the gateway has a limit of its own (`limits.work_wait`).
const WAIT_AT_ONCE = 60_000;
// Where the answer to "wait" came sooner than this, the next one is not asked for at once.
const TOO_SOON = 50;
const LEASE = 30_000;
const WAIT = 600_000;

/** Runs side effects of your own once, by the operations API of a gateway. */
export class Client {
  #headers;
  #fetch;

  /**
   * A client of the control listener at `url`, else `$ONLYONCE_CONTROL`, else http://127.0.0.1:8788. Or of the gateway
   * where it has a route for workers, with the prefix of that.
   *
   * @param {string} [url]
   * @param {ClientOptions} [options]
   */
  constructor(url, options = {}) {
    const address = url || process.env.ONLYONCE_CONTROL || "http://127.0.0.1:8788";
    if (!/^https?:\/\/[^/]/.test(address)) {
      throw new TypeError(`"${address}" is no URL of a control listener, like http://127.0.0.1:8788`);
    }
    /** The control listener, or a route for workers. */
    this.url = address.replace(/\/+$/, "");
    this.tenant = options.tenant;
    this.namespace = options.namespace;
    /** @type {Retry} */
    this.retry = { ...protocol.RETRY, ...options.retry };
    const token = options.token ?? process.env.ONLYONCE_CONTROL_TOKEN;
    this.#headers = {
      "content-type": "application/json",
      ...(token ? { authorization: `Bearer ${token}` } : {}),
    };
    this.#fetch = options.fetch ?? globalThis.fetch;
  }

  /**
   * Asks for the right to execute `key`: 1 to 255 visible ASCII characters, the same over retries.
   *
   * @param {string} key
   * @param {BeginOptions} [options]
   * @returns {Promise<Decision>}
   * @throws Unknown, KeyReused, Refused, Unavailable
   */
  async begin(key, options = {}) {
    const wait = millis(options.wait ?? 0);
    const lease = options.lease ?? LEASE;
    const answer = await this.#exchange("POST", "/v1/work", wait, {
      key,
      // The same one in every attempt, so that a claim whose answer was lost is found again.
      nonce: options.nonce ?? randomUUID(),
      lease: spanText(lease),
      wait: wait > 0 ? spanText(wait) : undefined,
      input: options.input,
      namespace: options.namespace ?? this.namespace,
      tenant: this.tenant,
      name: options.name,
      on_unknown: options.onUnknown,
    });
    return protocol.decision(answer, millis(lease));
  }

  /**
   * Says that the work goes on: the claim is believed for another lease.
   *
   * @param {Claim} claim
   * @returns {Promise<Work>}
   * @throws ClaimLost, AlreadySettled, NoSuchOperation, Unavailable
   */
  heartbeat(claim) {
    return this.#settle(claim, "heartbeat", { lease: spanText(claim.lease) });
  }

  /**
   * Records `result`, which everybody who comes with the key gets for `window` (24 h).
   *
   * @param {Claim} claim
   * @param {unknown} result JSON. `undefined` is recorded as null.
   * @param {{ window?: Span, metered?: object }} [options]
   * @returns {Promise<Work>}
   * @throws ClaimLost, AlreadySettled, NoSuchOperation, ResultTooLarge, Refused, Unavailable
   */
  complete(claim, result, options = {}) {
    const window = options.window === undefined ? undefined : spanText(options.window);
    return this.#settle(claim, "complete", { result: result ?? null, window, metered: options.metered });
  }

  /**
   * Says that nothing ran: the key is free.
   *
   * @param {Claim} claim
   * @returns {Promise<Work>}
   */
  release(claim) {
    return this.#settle(claim, "release", {});
  }

  /**
   * Says that nobody can say whether it ran.
   *
   * @param {Claim} claim
   * @param {{ metered?: object }} [options]
   * @returns {Promise<Work>}
   */
  fail(claim, options = {}) {
    return this.#settle(claim, "fail", { metered: options.metered });
  }

  /**
   * The operation as it is.
   *
   * @param {string} operation
   * @returns {Promise<Work>}
   * @throws NoSuchOperation, Refused, Unavailable
   */
  get(operation) {
    return this.#look(operation, 0);
  }

  /**
   * Waits up to `timeout` for the operation's end, and gives it as it is then.
   *
   * @param {string} operation
   * @param {Span} timeout
   * @returns {Promise<Work>}
   */
  async wait(operation, timeout) {
    const until = performance.now() + millis(timeout);
    for (;;) {
      const began = performance.now();
      const found = await this.#look(operation, Math.max(0, Math.min(until - began, WAIT_AT_ONCE)));
      if (found.state !== "in_flight" || performance.now() >= until) return found;
      await this.#unhurried(began, until);
    }
  }

  /**
   * One operation from its begin to its end. `body` is called also where it was done before: see `replayed`. Leaving
   * it without `complete` says that the outcome is unknown, and by `DidNotRun` that nothing ran.
   *
   * @template T
   * @param {string} key
   * @param {OperationOptions} options
   * @param {(operation: Operation) => T | Promise<T>} body
   * @returns {Promise<T>}
   * @throws Unknown, KeyReused, InFlight, NothingRan, LeaseOver, Refused, Unavailable, or RangeError of a span of time:
   *   `body` was not called.
   */
  async operation(key, options, body) {
    // One that the gateway would refuse is a mistake to be found before the work, and not at its end.
    if (options.window !== undefined) windowOf(options.window);
    const found = await this.#acquire(key, options);
    return during(new Operation(this, key, found, options), body);
  }

  /**
   * `fn`, so that it runs once for each key: see `once`.
   *
   * @template {any[]} A
   * @template R
   * @param {(...args: A) => R} fn
   * @param {OnceOptions<A>} options
   * @returns {(...args: A) => Promise<Awaited<R>>}
   */
  once(fn, options) {
    return once(fn, { ...options, client: this });
  }

  /**
   * The tools of one run of an agent, each call of which runs once: see `Tools`.
   *
   * @param {Record<string, Tool>} tools
   * @param {ToolOptions} options
   */
  tools(tools, options) {
    return new Tools(this, tools, options);
  }

  /**
   * Begins, and waits where somebody else executes it.
   *
   * @param {string} key
   * @param {OperationOptions} options
   * @returns {Promise<Claim | Replay>}
   */
  async #acquire(key, options) {
    const wait = millis(options.wait ?? WAIT);
    const until = performance.now() + wait;
    let reruns = options.onUnknown === "rerun";
    for (;;) {
      const began = performance.now();
      const left = Math.max(0, Math.min(until - began, WAIT_AT_ONCE));
      let found;
      try {
        found = await this.begin(key, { ...options, wait: left, nonce: undefined });
      } catch (error) {
        // Whoever was waited for died: who waited shares that, and is asked once more whether it is to run again.
        if (!reruns || !(error instanceof errors.Unknown)) throw error;
        reruns = false;
        continue;
      }
      switch (found.decision) {
        case "replay":
        case "join":
          return found;
        case "execute":
          // By what is left of the lease since the first byte was sent, whatever the calendars say.
          if (performance.now() - began > found.lease / 3) await this.#renewBeforeWork(found);
          return found;
        case "released":
          throw new errors.NothingRan(
            `Whoever executed ${key} released it.`,
            "Nothing ran, there or here.",
            "Call again if it is still to be done.",
          );
      }
      if (performance.now() >= until) {
        const error = new errors.InFlight(
          `Somebody else executes ${key}, and was not done within ${wait / 1000} s.`,
          "Nothing ran here.",
          "Call again later: the result is there as soon as it is done.",
        );
        throw errors.having(error, { operation: found.operation });
      }
      await this.#unhurried(began, until);
    }
  }

  /** @param {Claim} claim */
  async #renewBeforeWork(claim) {
    try {
      await this.heartbeat(claim);
    } catch (error) {
      if (!errors.isLost(error)) throw error;
      throw new errors.LeaseOver(
        `The lease of ${claim.operation} had passed before the answer of the gateway was here.`,
        "It was not begun here. Others have taken this worker for dead, and may have begun.",
        "Call again: the gateway says what it is by then. A longer lease helps on a slow network.",
        { cause: error },
      );
    }
  }

  /** @param {number} began @param {number} until */
  async #unhurried(began, until) {
    if (performance.now() - began >= TOO_SOON) return;
    const { backoff, random } = this.retry;
    await sleep(Math.min(backoff * random(), Math.max(0, until - performance.now())));
  }

  /** @param {Claim} claim @param {string} word @param {object} body */
  async #settle(claim, word, body) {
    const path = `/v1/work/${encodeURIComponent(claim.operation)}/${word}`;
    return protocol.work(await this.#exchange("POST", path, 0, { claim: claim.secret, ...body }));
  }

  /** @param {string} operation @param {number} wait */
  async #look(operation, wait) {
    const query = wait > 0 ? `?wait=${spanText(wait)}` : "";
    return protocol.work(await this.#exchange("GET", `/v1/work/${encodeURIComponent(operation)}${query}`, wait));
  }

  /**
   * Sends a request until there is an answer that counts.
   *
   * @param {string} method
   * @param {string} path
   * @param {number} wait What it asks the gateway to wait.
   * @param {object} [body]
   * @returns {Promise<Answer>}
   */
  async #exchange(method, path, wait, body) {
    const { retry } = this;
    const text = body && JSON.stringify(body);
    for (let retries = 0; ; retries += 1) {
      const got = await this.#send(method, path, retry.timeout + wait, text);
      if (!(got instanceof Error) && !protocol.isRetried(got.status)) return got;
      const answer = got instanceof Error ? undefined : got;
      if (retries >= retry.retries) {
        const why = answer ? protocol.said(answer).detail : `the gateway gave no answer: ${words(got)}`;
        throw new errors.Unavailable(
          protocol.sentence(why),
          "After all retries it is not known whether the last word arrived.",
          "Look at the gateway, and call again: with the same nonce or claim nothing is done twice.",
          got instanceof Error ? { cause: got } : undefined,
        );
      }
      await sleep(protocol.waitBefore(retry, retries, answer));
    }
  }

  /**
   * @param {string} method
   * @param {string} path
   * @param {number} patience
   * @param {string | undefined} body
   * @returns {Promise<Answer | Error>}
   */
  async #send(method, path, patience, body) {
    try {
      const signal = AbortSignal.timeout(Math.ceil(patience));
      const init = { method, body, headers: this.#headers, redirect: /** @type {const} */ ("error"), signal };
      const answer = await this.#fetch(this.url + path, init);
      return { status: answer.status, headers: answer.headers, body: await answer.text() };
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error));
    }
  }
}

/** @param {unknown} error */
function words(error) {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  return cause instanceof Error ? `${error.message} (${cause.message})` : error.message;
}

/** @type {Client | undefined} */
let made;

/** The client of functions that name none, made of the environment when it is first needed. */
export function shared() {
  made ??= new Client();
  return made;
}
