/** A function that runs once for each key. */
import type { Client, OperationOptions } from "./client.js";
export type OnlyOnceOptions<A extends any[]> = {
    /**
     * The key: a function of the arguments, or a text for a function
     * that has none.
     */
    key: string | ((...args: A) => string);
    /**
     * What makes two calls the same one. All arguments unless said, which must
     * be JSON then. The function's name is always a part of it.
     */
    input?: (...args: A) => unknown;
    /**
     * What it is called in lists and as a part of the input; the function's own name unless said.
     */
    name?: string;
    /**
     * Whose gateway; else that of `$ONLYONCE_CONTROL`.
     */
    client?: Client;
};
export type OnceOptions<A extends any[]> = OnlyOnceOptions<A> & Omit<OperationOptions, "input" | "name">;
/** @import { Client, OperationOptions } from "./client.js" */
/**
 * What `once` takes. The options of an operation, and:
 *
 * @template {any[]} A
 * @typedef {object} OnlyOnceOptions
 * @property {string | ((...args: A) => string)} key The key: a function of the arguments, or a text for a function
 *   that has none.
 * @property {(...args: A) => unknown} [input] What makes two calls the same one. All arguments unless said, which must
 *   be JSON then. The function's name is always a part of it.
 * @property {string} [name] What it is called in lists and as a part of the input; the function's own name unless said.
 * @property {Client} [client] Whose gateway; else that of `$ONLYONCE_CONTROL`.
 */
/**
 * @template {any[]} A
 * @typedef {OnlyOnceOptions<A> & Omit<OperationOptions, "input" | "name">} OnceOptions
 */
/**
 * `fn`, so that it runs once for each key.
 *
 * The first call claims the key and runs, with heartbeats in the background, and its result is recorded. A later one
 * does not run: it gets that result. One that comes while it runs waits, and gets the same. Where it throws, its
 * outcome is unknown and nobody runs it again unasked; `DidNotRun` says that nothing ran, and frees the key.
 *
 * The result is JSON: every call, the first one too, gets what JSON makes of it.
 *
 * @template {any[]} A
 * @template R
 * @param {(...args: A) => R} fn
 * @param {OnceOptions<A>} options
 * @returns {(...args: A) => Promise<Awaited<R>>} It rejects with Unknown, KeyReused, InFlight, NothingRan, LeaseOver,
 *   Refused or Unavailable where nothing ran here, and with NotRecorded where it ran and its result is not recorded.
 * @throws {TypeError | RangeError} An option is missing, or none that there can be.
 */
export declare function once<A extends any[], R>(fn: (...args: A) => R, options: OnceOptions<A>): (...args: A) => Promise<Awaited<R>>;
