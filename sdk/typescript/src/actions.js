/** Keys that survive a crash: one for each action, kept before the first byte is sent. */

import { randomUUID } from "node:crypto";
import { homedir } from "node:os";
import { join } from "node:path";

import { ActionReused, KeyPresent, KeysError } from "./errors.js";
import { KeyFolder, checkAction, fingerprint } from "./folder.js";
import { withAction } from "./sdks.js";
import { millis, parse } from "./time.js";
import * as window from "./window.js";

/** @import { Note, Taken } from "./folder.js" */
/** @import { Span } from "./time.js" */

/**
 * A header by its name in lower case; undefined or null where it is not there.
 *
 * @typedef {(name: string) => string | null | undefined} HeaderOf
 */

export const HEADER = "Idempotency-Key";

// Worth another attempt, so not the server's last word.
const RETRIED = new Set([408, 409, 425, 429, 500, 502, 503, 504, 529]);

/**
 * @typedef {object} ActionKeysOptions
 * @property {Span} [window] How long the server keeps a key, where it does not say so itself (`Onlyonce-Expires`);
 *   24 h.
 * @property {() => number} [clock] Milliseconds since 1970, for tests.
 */

/**
 * One key for each action of yours, so that a restarted process sends the same one.
 *
 * Name what is to happen once, and not the attempt. The key is on disk, synced, before the first byte is sent; the
 * folder may be shared with `onlyonce call`, Python, and any number of processes of this machine.
 */
export class ActionKeys {
  #window;
  #clock;

  /**
   * Keys in `folder`; else in `$ONLYONCE_KEYS`, else where `onlyonce call` keeps them.
   *
   * @param {string | KeyFolder} [folder]
   * @param {ActionKeysOptions} [options]
   */
  constructor(folder, options = {}) {
    this.folder = folder instanceof KeyFolder ? folder : new KeyFolder(folder ?? defaultFolder());
    this.#window = millis(options.window ?? "24h");
    this.#clock = options.clock ?? Date.now;
  }

  /**
   * `client`, of the official OpenAI, Anthropic or Stripe SDK, for the one request of `action`.
   *
   * The SDK may retry as it likes: each attempt carries the key of the action, and none is sent once the window may
   * be over. These SDKs wrap what is thrown under them, so an attempt that is refused is answered as a gateway would,
   * with a problem document that no SDK retries.
   *
   * @template {object} C
   * @param {C} client
   * @param {string} action
   * @returns {Promise<C>}
   * @throws WindowOver, ClockWentBack, KeysError; TypeError where the client or the action is none.
   */
  async client(client, action) {
    return withAction(client, await this.call(action));
  }

  /**
   * `fetch` for the one request of `action`: each attempt carries its key.
   *
   * @param {string} action
   * @param {typeof globalThis.fetch} [fetch]
   * @returns {typeof globalThis.fetch} It rejects with ActionReused, WindowOver, ClockWentBack, KeysError, KeyPresent.
   */
  fetch(action, fetch = globalThis.fetch) {
    return new ActionCall(this, checkAction(action)).fetch(fetch);
  }

  /**
   * One call of `action`, for any HTTP library: see `ActionCall`.
   *
   * @param {string} action
   * @returns {Promise<ActionCall>}
   * @throws WindowOver, ClockWentBack, KeysError
   */
  async call(action) {
    const call = new ActionCall(this, checkAction(action));
    const kept = await this.folder.look(action);
    if (kept) this.check(action, kept);
    return call;
  }

  /**
   * Forgets `action`, and says whether it was known. From here on it is a new action, with a new key.
   *
   * Call this once your own records say that the action is done, and never before.
   *
   * @param {string} action
   */
  forget(action) {
    return this.folder.forget(action);
  }

  /** This moment. */
  now() {
    return new Date(this.#clock());
  }

  /**
   * Throws where the server may have forgotten the key.
   *
   * @param {string} action
   * @param {Taken} taken
   */
  check(action, taken) {
    window.check(action, taken, this.#window, this.now());
  }
}

/** One call of an action: its key for each attempt, and a note of what the server said. */
export class ActionCall {
  #keys;
  /** @type {Taken | undefined} */
  #taken;

  /** @param {ActionKeys} keys @param {string} action */
  constructor(keys, action) {
    this.#keys = keys;
    this.action = action;
  }

  /**
   * The key for an attempt with this very request. It is durable when this resolves.
   *
   * Ask before each attempt: a key is not sent once the server may have forgotten it.
   *
   * @param {string} method
   * @param {string} url
   * @param {string | Uint8Array} [body]
   * @returns {Promise<string>}
   * @throws ActionReused, WindowOver, ClockWentBack, KeysError
   */
  async key(method, url, body = "") {
    const of = fingerprint(method, url, body);
    const fresh = { key: randomUUID(), fingerprint: of, madeAt: this.#keys.now() };
    const taken = await this.#keys.folder.take(this.action, fresh);
    if (taken.entry.fingerprint !== of) {
      throw new ActionReused(
        `${this.action} was used for another request at ${taken.entry.madeAt.toISOString()}: its method, URL or body ` +
          "differs.",
        "This call sent nothing. The first request is not changed by it.",
        "If this is another action, give it another name. If it is the same one, send the very same request as the " +
          "first time.",
      );
    }
    this.#keys.check(this.action, taken);
    this.#taken = taken;
    return taken.entry.key;
  }

  /**
   * Notes what the server said, where that counts: a final answer, or that the outcome is unknown.
   *
   * What cannot be noted changes nothing: the key is kept.
   *
   * @param {number} status
   * @param {HeaderOf} header
   * @param {string} [problem] The body, where it is a problem document.
   */
  async answered(status, header, problem) {
    if (!this.#taken) return;
    const answered = lastWord(status, header, problem);
    if (answered === undefined) return;
    const before = this.#taken.note;
    /** @type {Note} */
    const note = { at: this.#keys.now(), answered, expiresAt: expires(header) };
    if (before) {
      const isKnown =
        before.answered === note.answered &&
        (note.expiresAt === null || note.expiresAt.getTime() === before.expiresAt?.getTime());
      // What is done stays done, whatever a later call is told, such as one with a wrong password.
      if (isKnown || (isSuccess(before) && !isSuccess(note))) return;
    }
    try {
      await this.#keys.folder.note(this.action, this.#taken.entry.key, note);
    } catch (error) {
      if (error instanceof KeysError) return;
      throw error;
    }
    this.#taken = { ...this.#taken, note };
  }

  /**
   * `fetch` with the key of this call.
   *
   * @param {typeof globalThis.fetch} fetch
   * @returns {typeof globalThis.fetch}
   */
  fetch(fetch) {
    return async (input, init) => {
      const request = new Request(input, init);
      this.refuseOtherKey(request.headers.get(HEADER));
      const body = new Uint8Array(await request.clone().arrayBuffer());
      const key = await this.key(request.method, request.url, body);
      const headers = new Headers(request.headers);
      headers.set(HEADER, key);
      const { method, signal } = request;
      const sent = { ...init, method, signal, headers, body: request.body ? body : undefined };
      const answer = await fetch(request.url, sent);
      const problem = isProblem((name) => answer.headers.get(name)) ? await answer.clone().text() : undefined;
      await this.answered(answer.status, (name) => answer.headers.get(name), problem);
      return answer;
    };
  }

  /**
   * Throws where a request has a key of its own.
   *
   * @param {string | null | undefined} key
   * @throws {KeyPresent}
   */
  refuseOtherKey(key) {
    if (key === null || key === undefined) return;
    throw new KeyPresent(
      `The request for ${this.action} has an ${HEADER} of its own.`,
      "This call sent nothing.",
      `Take out the ${HEADER}, or the action.`,
    );
  }
}

/**
 * The status of a final answer, null where the outcome is unknown, undefined where another attempt may tell more.
 *
 * @param {number} status
 * @param {HeaderOf} header
 * @param {string | undefined} problem
 */
function lastWord(status, header, problem) {
  if (isProblem(header) && kindOf(problem).endsWith("/problems/outcome-unknown")) return null;
  const isRecorded = ["executed", "replayed", "joined"].includes(header("onlyonce-status") ?? "");
  const told = [header("x-should-retry"), header("stripe-should-retry")];
  if (status < 400 || isRecorded || told.includes("false")) return status;
  if (told.includes("true")) return undefined;
  if (header("idempotent-replayed") === "true") return status;
  return RETRIED.has(status) ? undefined : status;
}

/**
 * Whether a body under these headers says that it is a problem document.
 *
 * @param {HeaderOf} header
 */
export function isProblem(header) {
  return (header("content-type") ?? "").split(";")[0].trim().toLowerCase() === "application/problem+json";
}

/** @param {string | undefined} problem */
function kindOf(problem) {
  try {
    return String(JSON.parse(problem ?? "")?.type);
  } catch {
    return "";
  }
}

/** @param {HeaderOf} header */
function expires(header) {
  try {
    return parse(header("onlyonce-expires"));
  } catch {
    return null;
  }
}

/** @param {Note} note */
function isSuccess(note) {
  return note.answered !== null && note.answered < 400;
}

function defaultFolder() {
  const { ONLYONCE_KEYS, XDG_STATE_HOME } = process.env;
  return ONLYONCE_KEYS || join(XDG_STATE_HOME || join(homedir(), ".local/state"), "onlyonce/keys");
}
