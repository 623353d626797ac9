/** What can go wrong, each with what happened, what it means and what to do next. */
/** Any error of this package. Its message is three sentences: what happened, what that means, what to do. */
export declare class OnlyonceError extends Error {
    /** What happened. */
    happened: string;
    /** What it means: whether anything ran, and may run. */
    means: string;
    /** What to do. */
    next: string;
    /**
     * @param {string} happened
     * @param {string} means
     * @param {string} next
     * @param {ErrorOptions} [options]
     */
    constructor(happened: string, means: string, next: string, options?: ErrorOptions);
}
/**
 * Throw it in your own code to say that nothing ran: the key is then free for another try.
 *
 * Only where you know it. After anything that may have run, let another error through: its outcome is unknown then,
 * and nobody runs it again unasked. It is about the innermost operation alone: one around that may have done other
 * things, and is unknown unless it catches this and throws one of its own.
 */
export declare class DidNotRun extends Error {
    /** @param {string} [message] @param {ErrorOptions} [options] */
    constructor(message?: string, options?: ErrorOptions);
}
/** It may have run, once at most, and nobody can say. */
export declare class Unknown extends OnlyonceError {
    /** The operation to settle. @type {string | undefined} */
    operation: string | undefined;
}
/** The key was used with another input. Nothing ran. */
export declare class KeyReused extends OnlyonceError {
}
/** A tool call was made before, under the same id and with other arguments. Nothing ran. */
export declare class ToolCallChanged extends KeyReused {
}
/**
 * A model asked for something that cannot be done: no such tool, or arguments that are none. Nothing ran, and no
 * operation was begun, so the same call may come again.
 */
export declare class BadToolCall extends OnlyonceError {
    /** The message or block that tells the model so. @type {any} */
    answer: any;
}
/** Somebody else executes it, and did not finish in the time that was waited. Nothing ran here. */
export declare class InFlight extends OnlyonceError {
    /** @type {string | undefined} */
    operation: string | undefined;
}
/** Whoever executed it, while this call waited, said that nothing ran. Nothing ran here either. */
export declare class NothingRan extends OnlyonceError {
}
/** The claim had passed before the work began, so it was not begun here. */
export declare class LeaseOver extends OnlyonceError {
}
/** Another claim counts by now: nothing that this worker says changes anything. */
export declare class ClaimLost extends OnlyonceError {
}
/** The operation is settled in another way, or its lease has passed. */
export declare class AlreadySettled extends OnlyonceError {
}
/** There is no such operation, or not any more. */
export declare class NoSuchOperation extends OnlyonceError {
}
/** The result is over the gateway's limit. The claim stands. */
export declare class ResultTooLarge extends OnlyonceError {
}
/** The work ran here, and its result could not be recorded. */
export declare class NotRecorded extends OnlyonceError {
    /** What the work returned. @type {unknown} */
    value: unknown;
}
/** No answer, or one to come back for, after all retries. */
export declare class Unavailable extends OnlyonceError {
}
/** The gateway does not take the request as it is. */
export declare class Refused extends OnlyonceError {
    /** The HTTP status. */
    status: number;
}
/** The folder of keys cannot be used. Nothing was sent, and no key was made anew. */
export declare class KeysError extends OnlyonceError {
}
/** The action belongs to another request: its method, URL or body differs. Nothing was sent. */
export declare class ActionReused extends OnlyonceError {
}
/** The request has a key of its own. Nothing was sent. */
export declare class KeyPresent extends OnlyonceError {
}
/** The server may have forgotten the key, so that it would run the action anew. Nothing was sent. */
export declare class WindowOver extends OnlyonceError {
    /** The end of the window. */
    endedAt: Date;
}
/** The clock stands before a moment that is past, so nobody can tell whether the window is over. */
export declare class ClockWentBack extends OnlyonceError {
}
/**
 * Gives an error the facts that its class names.
 *
 * @template {Error} E
 * @param {E} error
 * @param {Partial<E>} facts
 * @returns {E}
 */
export declare function having<E extends Error>(error: E, facts: Partial<E>): E;
/**
 * Whether a heartbeat was told that the claim does not count any more.
 *
 * @param {unknown} error
 * @returns {error is OnlyonceError}
 */
export declare function isLost(error: unknown): error is OnlyonceError;
