/** One operation from its begin to its end: kept by heartbeats, settled whatever happens. */

import { AsyncLocalStorage } from "node:async_hooks";

import * as errors from "./errors.js";

/** @import { Client, MoreOptions } from "./client.js" */
/** @import { Claim, Replay } from "./protocol.js" */

/** Errors that have said of an operation that it did not run. @type {WeakSet<Error>} */
const said = new WeakSet();

/** @type {AsyncLocalStorage<Operation>} */
const inside = new AsyncLocalStorage();

/**
 * The operation that is being executed here: inside of a `once` function, a tool, or the body of an operation.
 *
 * @returns {Operation}
 * @throws {Error} There is none.
 */
export function current() {
  const operation = inside.getStore();
  if (!operation) throw new Error("no operation is being executed here");
  return operation;
}

/** An operation that was begun. Made by `Client.operation`. */
export class Operation {
  #client;
  #options;
  /** @type {Claim | undefined} */
  #claim;
  #settled = false;
  #hasResult = false;
  #gone = new AbortController();
  /** @type {NodeJS.Timeout | undefined} */
  #beat;

  /**
   * @param {Client} client
   * @param {string} key
   * @param {Claim | Replay} found
   * @param {MoreOptions} options
   */
  constructor(client, key, found, options) {
    this.#client = client;
    this.#options = options;
    this.#claim = found.decision === "execute" ? found : undefined;
    /** Its key. */
    this.key = key;
    /** The operation's id: pass it on as the key of what you call, where that honours keys. */
    this.id = found.operation;
    /** Which attempt of the operation this is, from 1. */
    this.attempt = found.attempt;
    /** Whether it was done before: `result` is there, and nothing is to be done. */
    this.replayed = found.decision !== "execute";
    /** The result: what was recorded, or what `complete` was given. @type {any} */
    this.result = found.decision === "execute" ? undefined : found.result;
    if (this.#claim) this.#beatLater(this.#claim);
  }

  /**
   * Aborted, with the error as its reason, once a heartbeat was told that the claim does not count any more.
   *
   * @returns {AbortSignal}
   */
  get signal() {
    return this.#gone.signal;
  }

  /**
   * Records `result`. After ResultTooLarge try a shorter one.
   *
   * @param {unknown} result JSON.
   * @param {{ metered?: object }} [options]
   * @throws ClaimLost, AlreadySettled, NoSuchOperation, ResultTooLarge, Refused, Unavailable
   */
  async complete(result, options = {}) {
    const claim = this.#open();
    // From here on nothing says any more that nothing ran.
    this.#hasResult = true;
    await this.#client.complete(claim, result, { window: this.#options.window, ...options });
    // What every other call gets: what JSON makes of it.
    this.result = JSON.parse(JSON.stringify(result ?? null));
    this.#end();
  }

  /** Says that nothing ran. */
  async release() {
    await this.#client.release(this.#open());
    this.#end();
  }

  /**
   * Says that nobody can say whether it ran.
   *
   * @param {{ metered?: object }} [options]
   */
  async fail(options = {}) {
    await this.#client.fail(this.#open(), options);
    this.#end();
  }

  /**
   * Says what is still to be said when the work is over. `error` is what ended it.
   *
   * @param {unknown} [error]
   */
  async leave(error) {
    const claim = this.#settled ? undefined : this.#claim;
    this.#end();
    // Nobody is there to be told more: the lease has ended it, or will.
    if (!claim || this.signal.aborted || isUnheard(error)) return;
    const didNotRun = this.#saysThatItDidNotRun(error);
    try {
      await (didNotRun ? this.#client.release(claim) : this.#client.fail(claim));
    } catch (unsaid) {
      // The error that ended the work counts for more; the lease ends this one.
      if (!(unsaid instanceof errors.OnlyonceError)) throw unsaid;
    }
  }

  /** @param {unknown} error */
  #saysThatItDidNotRun(error) {
    if (this.#hasResult || !(error instanceof Error) || said.has(error)) return false;
    // An error of this package is about recording, or about another operation.
    if (error instanceof errors.OnlyonceError) return false;
    if (!(error instanceof errors.DidNotRun || this.#options.didNotRun?.(error))) return false;
    // Once it is said of this operation, it says nothing of one around it.
    said.add(error);
    return true;
  }

  #open() {
    if (!this.#claim) throw new Error(`there is nothing to settle: ${this.key} was done before`);
    if (this.#settled) throw new Error(`${this.key} is settled already`);
    return this.#claim;
  }

  #end() {
    this.#settled = true;
    clearTimeout(this.#beat);
  }

  /** @param {Claim} claim */
  #beatLater(claim) {
    this.#beat = setTimeout(async () => {
      try {
        await this.#client.heartbeat(claim);
      } catch (error) {
        if (errors.isLost(error)) {
          if (!this.#settled) this.#gone.abort(error);
          return;
        }
        // The gateway is away: the next one may be heard, while the lease lasts.
      }
      if (!this.#settled) this.#beatLater(claim);
    }, claim.lease / 3);
    // Work that waits for nothing any more is not kept alive by its heartbeats.
    this.#beat.unref();
  }
}

/**
 * Runs `body` with `operation`, and settles what it leaves open.
 *
 * @template T
 * @param {Operation} operation
 * @param {(operation: Operation) => T | Promise<T>} body
 * @returns {Promise<T>}
 */
export async function during(operation, body) {
  let result;
  try {
    result = await inside.run(operation, async () => body(operation));
  } catch (error) {
    await operation.leave(error);
    throw error;
  }
  await operation.leave();
  return result;
}

/**
 * Completes `operation` with `value`; what cannot be recorded is not lost with the error.
 *
 * @param {Operation} operation
 * @param {unknown} value
 * @throws {errors.NotRecorded}
 */
export async function record(operation, value) {
  try {
    await operation.complete(value);
  } catch (error) {
    const why = error instanceof errors.OnlyonceError ? error.happened : `Its result is not JSON: ${error}.`;
    const told = new errors.NotRecorded(
      `${operation.key} ran, and its result is not recorded: ${why}`,
      "It ran here. Others are told that its outcome is unknown, or what another worker made of it.",
      "Keep the value of this error where it belongs, and settle the operation with onlyonce keys complete.",
      { cause: error },
    );
    throw errors.having(told, { value });
  }
}

/**
 * Whether the result could not be said, and nothing else can.
 *
 * @param {unknown} error
 */
function isUnheard(error) {
  if (!(error instanceof errors.NotRecorded)) return false;
  return error.cause instanceof errors.Unavailable || errors.isLost(error.cause);
}
