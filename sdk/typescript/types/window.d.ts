/** How long a key may still be sent. */
import type { Taken } from "./folder.js";
/**
 * Throws where the server may have forgotten the key of `action` by `now`.
 *
 * The window ends when the server said, or else `length` milliseconds after the key was made.
 *
 * @param {string} action
 * @param {Taken} taken
 * @param {number} length
 * @param {Date} now
 * @throws WindowOver, ClockWentBack
 */
export declare function check(action: string, taken: Taken, length: number, now: Date): void;
