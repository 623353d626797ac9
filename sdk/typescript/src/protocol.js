/** The operations API without I/O: what the answers mean, and when to try again. */

import * as errors from "./errors.js";
import { parse } from "./time.js";

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
export const RETRY = Object.freeze({
  retries: 5,
  backoff: 500,
  backoffMost: 8000,
  timeout: 10_000,
  random: Math.random,
});

/**
 * It is yours, durably: the right to execute an operation, and the duty to settle it.
 *
 * @typedef {object} Claim
 * @property {"execute"} decision
 * @property {string} operation
 * @property {number} attempt
 * @property {number} epoch Higher than that of every claim of this operation before it: what can compare refuses a lower one.
 * @property {string} secret Who has it settles the operation.
 * @property {number} lease How long it is believed without a heartbeat, in milliseconds.
 * @property {Date} leaseUntil When that ends, on the gateway's clock.
 */

/**
 * It is done: this is its result. With `join` it was finished while this call waited.
 *
 * @typedef {object} Replay
 * @property {"replay" | "join"} decision
 * @property {string} operation
 * @property {number} attempt
 * @property {number} epoch That of the claim under which it was done.
 * @property {Date | undefined} expiresAt
 * @property {unknown} result
 */

/**
 * Somebody executes it.
 *
 * @typedef {{ decision: "in_flight", operation: string | undefined }} Running
 */

/**
 * Whoever executed it, while this call waited, said that nothing ran.
 *
 * @typedef {{ decision: "released", operation: string }} Freed
 */

/** @typedef {Claim | Replay | Running | Freed} Decision */

/**
 * An operation as it stands.
 *
 * @typedef {object} Work
 * @property {string} operation
 * @property {string} tenant
 * @property {string} namespace
 * @property {string} key
 * @property {string} name
 * @property {"in_flight" | "completed" | "unknown" | "released"} state
 * @property {number} epoch That of the claim that counts.
 * @property {Date} claimedAt
 * @property {Date | undefined} leaseUntil
 * @property {Date | undefined} completedAt
 * @property {Date | undefined} expiresAt
 * @property {string | undefined} reason Why it is unknown or released.
 * @property {unknown} result Its result, where it is completed and was asked for.
 */

// Nothing was claimed or settled, or it can be said again: the gateway is away, busy or full.
const RETRIED = new Set([408, 425, 429, 500, 502, 503, 504, 507]);

/** @param {number} status */
export function isRetried(status) {
  return RETRIED.has(status);
}

/**
 * How long to wait before the next retry, in milliseconds, after so many of them.
 *
 * @param {Retry} retry
 * @param {number} retries
 * @param {Answer | undefined} answer
 */
export function waitBefore(retry, retries, answer) {
  const asked = Number(answer?.headers.get("retry-after") ?? 0);
  if (asked > 0) return asked * 1000 + retry.backoff * retry.random();
  return Math.min(retry.backoff * 2 ** retries, retry.backoffMost) * retry.random();
}

/**
 * What `POST /v1/work`, which asked for so long a `lease`, answered.
 *
 * @param {Answer} answer
 * @param {number} lease
 * @returns {Decision}
 * @throws {errors.OnlyonceError} What it refused.
 */
export function decision(answer, lease) {
  const body = read(answer);
  switch (body.decision) {
    case "execute":
      return {
        decision: "execute",
        operation: body.operation,
        attempt: body.attempt,
        epoch: body.epoch,
        secret: body.claim,
        lease,
        leaseUntil: parse(body.lease_until),
      };
    case "replay":
    case "join":
      return {
        decision: body.decision,
        operation: body.operation,
        attempt: body.attempt,
        epoch: body.epoch,
        expiresAt: moment(body.expires_at),
        result: body.result,
      };
    case "in_flight":
      return { decision: "in_flight", operation: body.operation ?? undefined };
    case "released":
      return { decision: "released", operation: body.operation };
    default:
      throw unreadable(answer);
  }
}

/**
 * What every other request answers.
 *
 * @param {Answer} answer
 * @returns {Work}
 * @throws {errors.OnlyonceError} What it refused.
 */
export function work(answer) {
  const body = read(answer);
  if (typeof body.operation !== "string" || typeof body.state !== "string") throw unreadable(answer);
  return {
    operation: body.operation,
    tenant: body.tenant,
    namespace: body.namespace,
    key: body.key,
    name: body.name,
    state: body.state,
    epoch: body.epoch,
    claimedAt: parse(body.claimed_at),
    leaseUntil: moment(body.lease_until),
    completedAt: moment(body.completed_at),
    expiresAt: moment(body.expires_at),
    reason: body.reason ?? undefined,
    result: body.result,
  };
}

/**
 * What the gateway says where it refuses (RFC 9457). What cannot be read still has its status.
 *
 * @param {Answer} answer
 * @returns {{ kind: string, detail: string, next: string, operation: string | undefined }}
 */
export function said(answer) {
  const document = json(answer.body) ?? {};
  /** @param {string} name */
  const word = (name) => (typeof document[name] === "string" ? document[name] : "");
  return {
    kind: /\/problems\/([^/]+)$/.exec(word("type"))?.[1] ?? "",
    detail: word("detail") || `the gateway answered ${answer.status}`,
    next: word("next"),
    operation: word("operation") || undefined,
  };
}

/**
 * The error for an answer that is none of the good ones.
 *
 * @param {Answer} answer
 * @returns {errors.OnlyonceError}
 */
function refusal(answer) {
  const told = said(answer);
  const happened = sentence(told.detail);
  const next = told.next ? sentence(told.next) : "Look at the gateway's log.";
  switch (told.kind) {
    case "outcome-unknown":
      return errors.having(
        new errors.Unknown(
          happened,
          "It may have run, once at most. Nothing runs under this key unasked.",
          "Find out whether it ran; then onlyonce keys complete or onlyonce keys release settles " +
            `${told.operation ?? "it"}. onUnknown: "rerun" runs it again, twice perhaps.`,
        ),
        { operation: told.operation },
      );
    case "key-reused":
      return new errors.KeyReused(
        "The key was used before, with another input.",
        "Nothing ran. What is recorded under the key is not changed.",
        "Use another key for another action; a retry has the very same input.",
      );
    case "claim-lost":
      return new errors.ClaimLost(
        happened,
        "Nothing that this worker says of it changes anything.",
        "Stop the work if it still runs, and look at what the operation is now.",
      );
    case "already-settled":
      return new errors.AlreadySettled(
        happened,
        "What is settled stays. A late result is still taken while its outcome is unknown.",
        "Complete it if you have the result; else leave it.",
      );
  }
  if (answer.status === 404) {
    return new errors.NoSuchOperation(happened, "Its record is gone, or never was.", next);
  }
  if (answer.status === 413) return new errors.ResultTooLarge(happened, "The claim stands.", next);
  return errors.having(new errors.Refused(happened, "Nothing was done.", next), { status: answer.status });
}

/** @param {Answer} answer @returns {any} */
function read(answer) {
  if (answer.status !== 200) throw refusal(answer);
  const body = json(answer.body);
  if (body === undefined) throw unreadable(answer);
  return body;
}

/** @param {string} text @returns {any} An object, or undefined where it is none. */
function json(text) {
  try {
    const found = JSON.parse(text);
    return typeof found === "object" && found !== null ? found : undefined;
  } catch {
    return undefined;
  }
}

/** @param {Answer} answer */
function unreadable(answer) {
  const error = new errors.Refused(
    "The answer is none of the operations API.",
    "It is not known whether anything was done.",
    "Look at the address: it is that of a gateway's control listener.",
  );
  return errors.having(error, { status: answer.status });
}

/** @param {unknown} text @returns {Date | undefined} */
function moment(text) {
  return text ? parse(text) : undefined;
}

/**
 * `text` with a capital at its start and a full stop at its end.
 *
 * @param {string} text
 */
export function sentence(text) {
  const trimmed = text.trim();
  const capital = trimmed.slice(0, 1).toUpperCase() + trimmed.slice(1);
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
