/** What can go wrong, each with what happened, what it means and what to do next. */

/** Any error of this package. Its message is three sentences: what happened, what that means, what to do. */
export class OnlyonceError extends Error {
  /**
   * @param {string} happened
   * @param {string} means
   * @param {string} next
   * @param {ErrorOptions} [options]
   */
  constructor(happened, means, next, options) {
    super(`${happened} ${means} ${next}`, options);
    this.name = new.target.name;
    /** What happened. */
    this.happened = happened;
    /** What it means: whether anything ran, and may run. */
    this.means = means;
    /** What to do. */
    this.next = next;
  }
}

/**
 * Throw it in your own code to say that nothing ran: the key is then free for another try.
 *
 * Only where you know it. After anything that may have run, let another error through: its outcome is unknown then,
 * and nobody runs it again unasked. It is about the innermost operation alone: one around that may have done other
 * things, and is unknown unless it catches this and throws one of its own.
 */
export class DidNotRun extends Error {
  /** @param {string} [message] @param {ErrorOptions} [options] */
  constructor(message, options) {
    super(message, options);
    this.name = "DidNotRun";
  }
}

/** It may have run, once at most, and nobody can say. */
export class Unknown extends OnlyonceError {
  /** The operation to settle. @type {string | undefined} */
  operation;
}

/** The key was used with another input. Nothing ran. */
export class KeyReused extends OnlyonceError {}

/** A tool call was made before, under the same id and with other arguments. Nothing ran. */
export class ToolCallChanged extends KeyReused {}

/**
 * A model asked for something that cannot be done: no such tool, or arguments that are none. Nothing ran, and no
 * operation was begun, so the same call may come again.
 */
export class BadToolCall extends OnlyonceError {
  /** The message or block that tells the model so. @type {any} */
  answer;
}

/** Somebody else executes it, and did not finish in the time that was waited. Nothing ran here. */
export class InFlight extends OnlyonceError {
  /** @type {string | undefined} */
  operation;
}

/** Whoever executed it, while this call waited, said that nothing ran. Nothing ran here either. */
export class NothingRan extends OnlyonceError {}

/** The claim had passed before the work began, so it was not begun here. */
export class LeaseOver extends OnlyonceError {}

/** Another claim counts by now: nothing that this worker says changes anything. */
export class ClaimLost extends OnlyonceError {}

/** The operation is settled in another way, or its lease has passed. */
export class AlreadySettled extends OnlyonceError {}

/** There is no such operation, or not any more. */
export class NoSuchOperation extends OnlyonceError {}

/** The result is over the gateway's limit. The claim stands. */
export class ResultTooLarge extends OnlyonceError {}

/** The work ran here, and its result could not be recorded. */
export class NotRecorded extends OnlyonceError {
  /** What the work returned. @type {unknown} */
  value;
}

/** No answer, or one to come back for, after all retries. */
export class Unavailable extends OnlyonceError {}

/** The gateway does not take the request as it is. */
export class Refused extends OnlyonceError {
  /** The HTTP status. */
  status = 0;
}

/** The folder of keys cannot be used. Nothing was sent, and no key was made anew. */
export class KeysError extends OnlyonceError {}

/** The action belongs to another request: its method, URL or body differs. Nothing was sent. */
export class ActionReused extends OnlyonceError {}

/** The request has a key of its own. Nothing was sent. */
export class KeyPresent extends OnlyonceError {}

/** The server may have forgotten the key, so that it would run the action anew. Nothing was sent. */
export class WindowOver extends OnlyonceError {
  /** The end of the window. */
  endedAt = new Date(0);
}

/** The clock stands before a moment that is past, so nobody can tell whether the window is over. */
export class ClockWentBack extends OnlyonceError {}

/**
 * Gives an error the facts that its class names.
 *
 * @template {Error} E
 * @param {E} error
 * @param {Partial<E>} facts
 * @returns {E}
 */
export function having(error, facts) {
  return Object.assign(error, facts);
}

/**
 * Whether a heartbeat was told that the claim does not count any more.
 *
 * @param {unknown} error
 * @returns {error is OnlyonceError}
 */
export function isLost(error) {
  return error instanceof ClaimLost || error instanceof AlreadySettled || error instanceof NoSuchOperation;
}
