/** Spans and moments, as the gateway writes them. */

/** A span of time: milliseconds, or text like `"30s"`, `"1h30m"`, `"7d"`. @typedef {number | string} Span */

/** @type {Record<string, number>} */
const UNITS = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const PART = /(\d+)(ms|s|m|h|d)/g;

/**
 * `span` in milliseconds.
 *
 * @param {Span} span
 * @returns {number}
 * @throws {RangeError} It is no span of time, or a negative one.
 */
export function millis(span) {
  if (typeof span === "string") {
    if (!/^((\d+)(ms|s|m|h|d))+$/.test(span)) {
      throw new RangeError(`"${span}" is no span of time: write whole numbers with ms, s, m, h or d, like "30s"`);
    }
    return [...span.matchAll(PART)].reduce((sum, [, number, unit]) => sum + Number(number) * UNITS[unit], 0);
  }
  if (!(span >= 0)) throw new RangeError(`${span} is no span of time in milliseconds`);
  return span;
}

/**
 * `span` as the gateway reads it.
 *
 * @param {Span} span
 */
export function spanText(span) {
  return `${Math.round(millis(span))}ms`;
}

/** What the gateway takes, in milliseconds. */
const LONGEST_WINDOW = 3650 * 86_400_000;

/**
 * The span for which a result answers, checked before anything runs.
 *
 * @param {Span} span
 * @returns {Span}
 * @throws {RangeError} It is no span of time, or none that a result can answer for.
 */
export function windowOf(span) {
  const length = millis(span);
  if (!(length >= 1 && length <= LONGEST_WINDOW)) {
    throw new RangeError(`a window cannot be ${span}: a result answers for 1ms to 3650d`);
  }
  return span;
}

/**
 * The moment that `text` names in RFC 3339.
 *
 * @param {unknown} text
 * @returns {Date}
 * @throws {RangeError} It names none.
 */
export function parse(text) {
  const shape = /^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)$/;
  const moment = new Date(typeof text === "string" && shape.test(text) ? text : NaN);
  if (Number.isNaN(moment.getTime())) throw new RangeError(`${String(text)} is no moment as RFC 3339 has it`);
  return moment;
}
