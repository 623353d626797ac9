/** A function that runs once for each key. */

import { shared } from "./client.js";
import { record } from "./operation.js";
import { millis, windowOf } from "./time.js";

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
export function once(fn, options) {
  const { key, input, client, ...more } = options;
  const name = options.name ?? fn.name;
  if (!name) {
    throw new TypeError("the function has no name: give it one, by the option `name`, which tells it from others");
  }
  if (typeof key !== "string" && typeof key !== "function") {
    throw new TypeError(`${name} has no key: say by the option \`key\` what makes two calls of it the same one`);
  }
  for (const span of [more.wait, more.lease]) if (span !== undefined) millis(span);
  if (more.window !== undefined) windowOf(more.window);
  if (typeof key === "string" && fn.length > 0) {
    throw new TypeError(`the key "${key}" of ${name} is the same for all arguments: give a function of them`);
  }
  return async (...args) => {
    const said = input ? input(...args) : comparable(name, args);
    return (client ?? shared()).operation(
      typeof key === "string" ? key : key(...args),
      { ...more, name, input: { function: name, arguments: said } },
      async (operation) => {
        if (!operation.replayed) await record(operation, await fn(...args));
        return operation.result;
      },
    );
  };
}

/**
 * The arguments, where JSON says all of them.
 *
 * @param {string} name
 * @param {any[]} args
 */
function comparable(name, args) {
  for (const [position, arg] of args.entries()) {
    if (!isJson(arg)) {
      throw new TypeError(
        `argument ${position + 1} of ${name} is not JSON, so two calls cannot be compared by it: say input: what ` +
          "makes two calls the same one",
      );
    }
  }
  return args;
}

/** @param {any} value @returns {boolean} */
function isJson(value) {
  if (value === null || typeof value === "string" || typeof value === "boolean") return true;
  if (typeof value === "number") return Number.isFinite(value);
  if (Array.isArray(value)) return value.every(isJson);
  if (typeof value !== "object") return false;
  const prototype = Object.getPrototypeOf(value);
  if (prototype !== Object.prototype && prototype !== null) return false;
  return Object.values(value).every((member) => member === undefined || isJson(member));
}
