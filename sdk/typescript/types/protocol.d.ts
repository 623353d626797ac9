/** The operations API without I/O: what the answers mean, and when to try again. */
export type Answer = {
    status: number;
    headers: Headers;
    body: string;
};
export type Retry = {
    /**
     * Attempts after the first one; 5.
     */
    retries: number;
    /**
     * The longest wait before the first retry, in milliseconds; it doubles with each further
     * one (full jitter); 500.
     */
    backoff: number;
    /**
     * The longest wait before any retry, in milliseconds, where the gateway asks for no
     * longer one; 8000.
     */
    backoffMost: number;
    /**
     * For one attempt, in milliseconds, beside what it asks the gateway to wait; 10,000.
     */
    timeout: number;
    /**
     * A number from 0 to 1: it spreads the waits.
     */
    random: () => number;
};
/**
 * A whole answer.
 *
 * @typedef {{ status: number, headers: Headers, body: string }} Answer
 */
/**
 * How often and how long a request to the gateway is tried. Every one of them may be sent twice.
 *
 * @typedef {object} Retry
 * @property {number} retries Attempts after the first one; 5.
 * @property {number} backoff The longest wait before the first retry, in milliseconds; it doubles with each further
 *   one (full jitter); 500.
 * @property {number} backoffMost The longest wait before any retry, in milliseconds, where the gateway asks for no
 *   longer one; 8000.
 * @property {number} timeout For one attempt, in milliseconds, beside what it asks the gateway to wait; 10,000.
 * @property {() => number} random A number from 0 to 1: it spreads the waits.
 */
/** @type {Readonly<Retry>} */
export declare const RETRY: Readonly<Retry>;
export type Claim = {
    decision: "execute";
    operation: string;
    attempt: number;
    /**
     * Higher than that of every claim of this operation before it: what can compare refuses a lower one.
     */
    epoch: number;
    /**
     * Who has it settles the operation.
     */
    secret: string;
    /**
     * How long it is believed without a heartbeat, in milliseconds.
     */
    lease: number;
    /**
     * When that ends, on the gateway's clock.
     */
    leaseUntil: Date;
};
export type Replay = {
    decision: "replay" | "join";
    operation: string;
    attempt: number;
    /**
     * That of the claim under which it was done.
     */
    epoch: number;
    expiresAt: Date | undefined;
    result: unknown;
};
export type Running = {
    decision: "in_flight";
    operation: string | undefined;
};
export type Freed = {
    decision: "released";
    operation: string;
};
export type Decision = Claim | Replay | Running | Freed;
export type Work = {
    operation: string;
    tenant: string;
    namespace: string;
    key: string;
    name: string;
    state: "in_flight" | "completed" | "unknown" | "released";
    /**
     * That of the claim that counts.
     */
    epoch: number;
    claimedAt: Date;
    leaseUntil: Date | undefined;
    completedAt: Date | undefined;
    expiresAt: Date | undefined;
    /**
     * Why it is unknown or released.
     */
    reason: string | undefined;
    /**
     * Its result, where it is completed and was asked for.
     */
    result: unknown;
};
/** @param {number} status */
export declare function isRetried(status: number): boolean;
/**
 * How long to wait before the next retry, in milliseconds, after so many of them.
 *
 * @param {Retry} retry
 * @param {number} retries
 * @param {Answer | undefined} answer
 */
export declare function waitBefore(retry: Retry, retries: number, answer: Answer | undefined): number;
/**
 * What `POST /v1/work`, which asked for so long a `lease`, answered.
 *
 * @param {Answer} answer
 * @param {number} lease
 * @returns {Decision}
 * @throws {errors.OnlyonceError} What it refused.
 */
export declare function decision(answer: Answer, lease: number): Decision;
/**
 * What every other request answers.
 *
 * @param {Answer} answer
 * @returns {Work}
 * @throws {errors.OnlyonceError} What it refused.
 */
export declare function work(answer: Answer): Work;
/**
 * What the gateway says where it refuses (RFC 9457). What cannot be read still has its status.
 *
 * @param {Answer} answer
 * @returns {{ kind: string, detail: string, next: string, operation: string | undefined }}
 */
export declare function said(answer: Answer): {
    kind: string;
    detail: string;
    next: string;
    operation: string | undefined;
};
/**
 * `text` with a capital at its start and a full stop at its end.
 *
 * @param {string} text
 */
export declare function sentence(text: string): string;
