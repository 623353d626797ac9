/** One operation from its begin to its end: kept by heartbeats, settled whatever happens. */
import type { Client, MoreOptions } from "./client.js";
import type { Claim, Replay } from "./protocol.js";
/**
 * The operation that is being executed here: inside of a `once` function, a tool, or the body of an operation.
 *
 * @returns {Operation}
 * @throws {Error} There is none.
 */
export declare function current(): Operation;
/** An operation that was begun. Made by `Client.operation`. */
export declare class Operation {
    #private;
    /** Its key. */
    key: string;
    /** The operation's id: pass it on as the key of what you call, where that honours keys. */
    id: string;
    /** Which attempt of the operation this is, from 1. */
    attempt: number;
    /** Whether it was done before: `result` is there, and nothing is to be done. */
    replayed: boolean;
    /** The result: what was recorded, or what `complete` was given. @type {any} */
    result: any;
    /**
     * @param {Client} client
     * @param {string} key
     * @param {Claim | Replay} found
     * @param {MoreOptions} options
     */
    constructor(client: Client, key: string, found: Claim | Replay, options: MoreOptions);
    /**
     * Aborted, with the error as its reason, once a heartbeat was told that the claim does not count any more.
     *
     * @returns {AbortSignal}
     */
    get signal(): AbortSignal;
    /**
     * Records `result`. After ResultTooLarge try a shorter one.
     *
     * @param {unknown} result JSON.
     * @param {{ metered?: object }} [options]
     * @throws ClaimLost, AlreadySettled, NoSuchOperation, ResultTooLarge, Refused, Unavailable
     */
    complete(result: unknown, options?: {
        metered?: object;
    }): Promise<void>;
    /** Says that nothing ran. */
    release(): Promise<void>;
    /**
     * Says that nobody can say whether it ran.
     *
     * @param {{ metered?: object }} [options]
     */
    fail(options?: {
        metered?: object;
    }): Promise<void>;
    /**
     * Says what is still to be said when the work is over. `error` is what ended it.
     *
     * @param {unknown} [error]
     */
    leave(error?: unknown): Promise<void>;
}
/**
 * Runs `body` with `operation`, and settles what it leaves open.
 *
 * @template T
 * @param {Operation} operation
 * @param {(operation: Operation) => T | Promise<T>} body
 * @returns {Promise<T>}
 */
export declare function during<T>(operation: Operation, body: (operation: Operation) => T | Promise<T>): Promise<T>;
/**
 * Completes `operation` with `value`; what cannot be recorded is not lost with the error.
 *
 * @param {Operation} operation
 * @param {unknown} value
 * @throws {errors.NotRecorded}
 */
export declare function record(operation: Operation, value: unknown): Promise<void>;
