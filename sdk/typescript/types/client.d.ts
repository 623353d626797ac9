/** The client of the operations API. */
import { Operation } from "./operation.js";
import { Tools } from "./tools.js";
import type { Claim, Decision, Retry, Work } from "./protocol.js";
import type { Span } from "./time.js";
import type { OnceOptions } from "./once.js";
import type { Tool, ToolOptions } from "./tools.js";
export type ClientOptions = {
    /**
     * The control listener's token with the right `work`; else `$ONLYONCE_CONTROL_TOKEN`.
     */
    token?: string;
    /**
     * Whose the keys are; else what the token says.
     */
    tenant?: string;
    /**
     * Where the keys are unique, within the tenant; else `work`.
     */
    namespace?: string;
    /**
     * How often a request is tried. All are safe to send twice.
     */
    retry?: Partial<Retry>;
    /**
     * In place of Node's.
     */
    fetch?: typeof globalThis.fetch;
};
export type BeginOptions = {
    /**
     * JSON that says what is to be done. Another input under the same key is refused.
     */
    input?: unknown;
    /**
     * How long to wait where somebody else executes it.
     */
    wait?: Span;
    /**
     * How long this worker is believed to be at it without a heartbeat; 30 s.
     */
    lease?: Span;
    /**
     * `"rerun"` claims anew where nobody knows whether it ran: it may run twice.
     */
    onUnknown?: "report" | "rerun";
    /**
     * Drawn for this one begin unless given. The same one finds a claim whose answer was lost.
     */
    nonce?: string;
    /**
     * In place of the client's.
     */
    namespace?: string;
    /**
     * What it is, for people who look at a list.
     */
    name?: string;
};
export type MoreOptions = {
    /**
     * How long the result answers, from its end; 24 h unless said.
     */
    window?: Span;
    /**
     * Which errors say that nothing ran, beside `DidNotRun`. It is not
     * asked about errors of this package, nor about anything that comes after the result.
     */
    didNotRun?: (error: Error) => boolean;
};
export type OperationOptions = Omit<BeginOptions, "nonce"> & MoreOptions;
/** Runs side effects of your own once, by the operations API of a gateway. */
export declare class Client {
    #private;
    /** The control listener, or a route for workers. */
    url: string;
    tenant: string | undefined;
    namespace: string | undefined;
    /** @type {Retry} */
    retry: Retry;
    /**
     * A client of the control listener at `url`, else `$ONLYONCE_CONTROL`, else http://127.0.0.1:8788. Or of the gateway
     * where it has a route for workers, with the prefix of that.
     *
     * @param {string} [url]
     * @param {ClientOptions} [options]
     */
    constructor(url?: string, options?: ClientOptions);
    /**
     * Asks for the right to execute `key`: 1 to 255 visible ASCII characters, the same over retries.
     *
     * @param {string} key
     * @param {BeginOptions} [options]
     * @returns {Promise<Decision>}
     * @throws Unknown, KeyReused, Refused, Unavailable
     */
    begin(key: string, options?: BeginOptions): Promise<Decision>;
    /**
     * Says that the work goes on: the claim is believed for another lease.
     *
     * @param {Claim} claim
     * @returns {Promise<Work>}
     * @throws ClaimLost, AlreadySettled, NoSuchOperation, Unavailable
     */
    heartbeat(claim: Claim): Promise<Work>;
    /**
     * Records `result`, which everybody who comes with the key gets for `window` (24 h).
     *
     * @param {Claim} claim
     * @param {unknown} result JSON. `undefined` is recorded as null.
     * @param {{ window?: Span, metered?: object }} [options]
     * @returns {Promise<Work>}
     * @throws ClaimLost, AlreadySettled, NoSuchOperation, ResultTooLarge, Refused, Unavailable
     */
    complete(claim: Claim, result: unknown, options?: {
        window?: Span;
        metered?: object;
    }): Promise<Work>;
    /**
     * Says that nothing ran: the key is free.
     *
     * @param {Claim} claim
     * @returns {Promise<Work>}
     */
    release(claim: Claim): Promise<Work>;
    /**
     * Says that nobody can say whether it ran.
     *
     * @param {Claim} claim
     * @param {{ metered?: object }} [options]
     * @returns {Promise<Work>}
     */
    fail(claim: Claim, options?: {
        metered?: object;
    }): Promise<Work>;
    /**
     * The operation as it is.
     *
     * @param {string} operation
     * @returns {Promise<Work>}
     * @throws NoSuchOperation, Refused, Unavailable
     */
    get(operation: string): Promise<Work>;
    /**
     * Waits up to `timeout` for the operation's end, and gives it as it is then.
     *
     * @param {string} operation
     * @param {Span} timeout
     * @returns {Promise<Work>}
     */
    wait(operation: string, timeout: Span): Promise<Work>;
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
    operation<T>(key: string, options: OperationOptions, body: (operation: Operation) => T | Promise<T>): Promise<T>;
    /**
     * `fn`, so that it runs once for each key: see `once`.
     *
     * @template {any[]} A
     * @template R
     * @param {(...args: A) => R} fn
     * @param {OnceOptions<A>} options
     * @returns {(...args: A) => Promise<Awaited<R>>}
     */
    once<A extends any[], R>(fn: (...args: A) => R, options: OnceOptions<A>): (...args: A) => Promise<Awaited<R>>;
    /**
     * The tools of one run of an agent, each call of which runs once: see `Tools`.
     *
     * @param {Record<string, Tool>} tools
     * @param {ToolOptions} options
     */
    tools(tools: Record<string, Tool>, options: ToolOptions): Tools;
}
/** The client of functions that name none, made of the environment when it is first needed. */
export declare function shared(): Client;
