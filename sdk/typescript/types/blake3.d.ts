/**
 * BLAKE3, for the names and checksums of the files that are shared with `onlyonce call`.
 *
 * After the specification (https://github.com/BLAKE3-team/BLAKE3-specs).
 */
/**
 * The hash of `data`, in hexadecimal.
 *
 * @param {Uint8Array} data
 */
export declare function digest(data: Uint8Array): string;
/**
 * The hash of `data` in the mode that derives keys, for what `context` names; in hexadecimal.
 *
 * @param {string} context
 * @param {Uint8Array} data
 */
export declare function derived(context: string, data: Uint8Array): string;
/**
 * The derived hash of some parts, each with its length before it.
 *
 * @param {string} context
 * @param {(string | Uint8Array)[]} of
 */
export declare function parts(context: string, of: (string | Uint8Array)[]): string;
