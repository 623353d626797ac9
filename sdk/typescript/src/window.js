/** How long a key may still be sent. */

import { ClockWentBack, WindowOver, having } from "./errors.js";

/** @import { Taken } from "./folder.js" */

// What the server's clock, the way to it and a slow attempt may take away from the window; a tenth of the window
// where that is less. In milliseconds.
const MARGIN = 60_000;

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
export function check(action, taken, length, now) {
  const madeAt = taken.entry.madeAt.getTime();
  const reckoned = new Date(taken.note?.expiresAt ?? madeAt + length).getTime();
  // What cannot be reckoned is over.
  const endsAt = Number.isNaN(reckoned) ? madeAt : reckoned;
  const margin = Math.min(MARGIN, Math.max(0, endsAt - madeAt) / 10);
  const past = Math.max(madeAt, taken.note?.at.getTime() ?? madeAt);
  // Clocks are put right by small steps all the time.
  if (past - now.getTime() > margin) {
    throw new ClockWentBack(
      `The clock says ${now.toISOString()}, and ${action} was called at ${new Date(past).toISOString()}: nobody can ` +
        "tell whether the server still knows its key.",
      "It may have run, and to send it again could run it a second time. This call sent nothing.",
      "Set the clock right, then call again with the same action.",
    );
  }
  if (endsAt - Math.max(now.getTime(), past) - margin <= 0) throw over(action, taken, new Date(endsAt));
}

/** @param {string} action @param {Taken} taken @param {Date} endedAt */
function over(action, taken, endedAt) {
  const happened = `The server may have forgotten the key of ${action}: its window ends at ${endedAt.toISOString()}.`;
  if (taken.isNew) {
    const next = "Give the keys a window that is longer than its margin.";
    return having(new WindowOver(happened, "This call sent nothing.", next), { endedAt });
  }
  const { note } = taken;
  const last =
    note && note.answered !== null
      ? `The server's last answer was ${note.answered}, at ${note.at.toISOString()}.`
      : "It may have run.";
  const error = new WindowOver(
    happened,
    `${last} To send it again could run it a second time.`,
    "Find out at the server whether it ran. If it did, use what is there. If it did not, forget the action and call " +
      "again: it then gets a new key.",
  );
  return having(error, { endedAt });
}
