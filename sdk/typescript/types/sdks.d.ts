/**
 * The official SDKs: a client of theirs that sends the key of an action with each attempt.
 *
 * None of them is imported here. OpenAI's and Anthropic's clients take a `fetch`, Stripe's an HTTP client of its own;
 * each gets one that puts the key in before it hands the request on.
 */
import type { ActionCall } from "./actions.js";
/** @import { ActionCall } from "./actions.js" */
/**
 * `client` for the one request of `call`.
 *
 * @template {object} C
 * @param {C} client
 * @param {ActionCall} call
 * @returns {C}
 * @throws {TypeError} It is no client that is known.
 */
export declare function withAction<C extends object>(client: C, call: ActionCall): C;
