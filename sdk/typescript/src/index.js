/**
 * Side effects that run once: for workers, jobs and agents, by the operations API of an Onlyonce gateway.
 *
 * - `Client`: operations of your own, `once` functions, tools of agent loops.
 * - `ActionKeys`: keys that survive a crash, for the official OpenAI, Anthropic and Stripe clients, and for any other.
 * - The errors, each of which says what happened, what it means and what to do.
 */

export { ActionCall, ActionKeys } from "./actions.js";
export { Client } from "./client.js";
export {
  ActionReused,
  AlreadySettled,
  BadToolCall,
  ClaimLost,
  ClockWentBack,
  DidNotRun,
  InFlight,
  KeyPresent,
  KeyReused,
  KeysError,
  LeaseOver,
  NoSuchOperation,
  NotRecorded,
  NothingRan,
  OnlyonceError,
  Refused,
  ResultTooLarge,
  ToolCallChanged,
  Unavailable,
  Unknown,
  WindowOver,
} from "./errors.js";
export { KeyFolder } from "./folder.js";
export { once } from "./once.js";
export { Operation, current } from "./operation.js";
export { Tools } from "./tools.js";

/** @typedef {import("./actions.js").ActionKeysOptions} ActionKeysOptions */
/** @typedef {import("./client.js").BeginOptions} BeginOptions */
/** @typedef {import("./client.js").ClientOptions} ClientOptions */
/** @typedef {import("./client.js").OperationOptions} OperationOptions */
/** @typedef {import("./protocol.js").Claim} Claim */
/** @typedef {import("./protocol.js").Decision} Decision */
/** @typedef {import("./protocol.js").Freed} Freed */
/** @typedef {import("./protocol.js").Replay} Replay */
/** @typedef {import("./protocol.js").Retry} Retry */
/** @typedef {import("./protocol.js").Running} Running */
/** @typedef {import("./protocol.js").Work} Work */
/** @typedef {import("./time.js").Span} Span */
/** @typedef {import("./tools.js").ToolOptions} ToolOptions */
