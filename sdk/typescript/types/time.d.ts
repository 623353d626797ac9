/** Spans and moments, as the gateway writes them. */
export type Span = number | string;
/**
 * `span` in milliseconds.
 *
 * @param {Span} span
 * @returns {number}
 * @throws {RangeError} It is no span of time, or a negative one.
 */
export declare function millis(span: Span): number;
/**
 * `span` as the gateway reads it.
 *
 * @param {Span} span
 */
export declare function spanText(span: Span): string;
/**
 * The span for which a result answers, checked before anything runs.
 *
 * @param {Span} span
 * @returns {Span}
 * @throws {RangeError} It is no span of time, or none that a result can answer for.
 */
export declare function windowOf(span: Span): Span;
/**
 * The moment that `text` names in RFC 3339.
 *
 * @param {unknown} text
 * @returns {Date}
 * @throws {RangeError} It names none.
 */
export declare function parse(text: unknown): Date;
