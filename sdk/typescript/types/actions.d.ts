/** Keys that survive a crash: one for each action, kept before the first byte is sent. */
import { KeyFolder } from "./folder.js";
import type { Taken } from "./folder.js";
import type { Span } from "./time.js";
export type HeaderOf = (name: string) => string | null | undefined;
/** @import { Note, Taken } from "./folder.js" */
/** @import { Span } from "./time.js" */
/**
 * A header by its name in lower case; undefined or null where it is not there.
 *
 * @typedef {(name: string) => string | null | undefined} HeaderOf
 */
export declare const HEADER = "Idempotency-Key";
export type ActionKeysOptions = {
    /**
     * How long the server keeps a key, where it does not say so itself (`Onlyonce-Expires`);
     * 24 h.
     */
    window?: Span;
    /**
     * Milliseconds since 1970, for tests.
     */
    clock?: () => number;
};
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
export declare class ActionKeys {
    #private;
    folder: KeyFolder;
    /**
     * Keys in `folder`; else in `$ONLYONCE_KEYS`, else where `onlyonce call` keeps them.
     *
     * @param {string | KeyFolder} [folder]
     * @param {ActionKeysOptions} [options]
     */
    constructor(folder?: string | KeyFolder, options?: ActionKeysOptions);
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
    client<C extends object>(client: C, action: string): Promise<C>;
    /**
     * `fetch` for the one request of `action`: each attempt carries its key.
     *
     * @param {string} action
     * @param {typeof globalThis.fetch} [fetch]
     * @returns {typeof globalThis.fetch} It rejects with ActionReused, WindowOver, ClockWentBack, KeysError, KeyPresent.
     */
    fetch(action: string, fetch?: typeof globalThis.fetch): typeof globalThis.fetch;
    /**
     * One call of `action`, for any HTTP library: see `ActionCall`.
     *
     * @param {string} action
     * @returns {Promise<ActionCall>}
     * @throws WindowOver, ClockWentBack, KeysError
     */
    call(action: string): Promise<ActionCall>;
    /**
     * Forgets `action`, and says whether it was known. From here on it is a new action, with a new key.
     *
     * Call this once your own records say that the action is done, and never before.
     *
     * @param {string} action
     */
    forget(action: string): Promise<boolean>;
    /** This moment. */
    now(): Date;
    /**
     * Throws where the server may have forgotten the key.
     *
     * @param {string} action
     * @param {Taken} taken
     */
    check(action: string, taken: Taken): void;
}
/** One call of an action: its key for each attempt, and a note of what the server said. */
export declare class ActionCall {
    #private;
    action: string;
    /** @param {ActionKeys} keys @param {string} action */
    constructor(keys: ActionKeys, action: string);
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
    key(method: string, url: string, body?: string | Uint8Array): Promise<string>;
    /**
     * Notes what the server said, where that counts: a final answer, or that the outcome is unknown.
     *
     * What cannot be noted changes nothing: the key is kept.
     *
     * @param {number} status
     * @param {HeaderOf} header
     * @param {string} [problem] The body, where it is a problem document.
     */
    answered(status: number, header: HeaderOf, problem?: string): Promise<void>;
    /**
     * `fetch` with the key of this call.
     *
     * @param {typeof globalThis.fetch} fetch
     * @returns {typeof globalThis.fetch}
     */
    fetch(fetch: typeof globalThis.fetch): typeof globalThis.fetch;
    /**
     * Throws where a request has a key of its own.
     *
     * @param {string | null | undefined} key
     * @throws {KeyPresent}
     */
    refuseOtherKey(key: string | null | undefined): void;
}
/**
 * Whether a body under these headers says that it is a problem document.
 *
 * @param {HeaderOf} header
 */
export declare function isProblem(header: HeaderOf): boolean;
