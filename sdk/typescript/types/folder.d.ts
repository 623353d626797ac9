/**
 * A folder of keys: one small file for each action, shared with `onlyonce call` and the Rust client.
 *
 *     FOLDER/<hash of the action>.key           the key, its request, when it was made. Written once
 *     FOLDER/<hash of action and key>.note      what the server said last. Replaced as a whole
 *     FOLDER/new/<random>                       being written
 *
 * The format, and why it is so, is that of `crates/client/src/folder.rs`: a key file is written under another name,
 * synced, linked to its own name, which fails where that exists, and the folder is synced. It is never written again.
 */
export type Entry = {
    key: string;
    /**
     * The request that the key is for, in hexadecimal.
     */
    fingerprint: string;
    madeAt: Date;
};
export type Note = {
    at: Date;
    /**
     * The status of an answer; null where the outcome is unknown.
     */
    answered: number | null;
    /**
     * The end of the server's window, where it told it.
     */
    expiresAt: Date | null;
};
export type Taken = {
    entry: Entry;
    /**
     * Whether this call made it, so that nothing can have been sent under it.
     */
    isNew: boolean;
    note: Note | undefined;
};
/**
 * What is kept for an action before anything is sent.
 *
 * @typedef {object} Entry
 * @property {string} key
 * @property {string} fingerprint The request that the key is for, in hexadecimal.
 * @property {Date} madeAt
 */
/**
 * What the server said last of an action.
 *
 * @typedef {object} Note
 * @property {Date} at
 * @property {number | null} answered The status of an answer; null where the outcome is unknown.
 * @property {Date | null} expiresAt The end of the server's window, where it told it.
 */
/**
 * What `KeyFolder.take` found or made.
 *
 * @typedef {object} Taken
 * @property {Entry} entry
 * @property {boolean} isNew Whether this call made it, so that nothing can have been sent under it.
 * @property {Note | undefined} note
 */
/**
 * `action`, where it names one.
 *
 * @param {string} action
 * @throws {TypeError} It is empty, over 1024 bytes, or has control characters.
 */
export declare function checkAction(action: string): string;
/**
 * What makes two requests of a caller the same request: method, URL and body. Headers are left out.
 *
 * @param {string} method
 * @param {string} url
 * @param {string | Uint8Array} body
 */
export declare function fingerprint(method: string, url: string, body: string | Uint8Array): string;
/**
 * Keys in a folder, for any number of processes of one machine.
 *
 * The folder must be on a file system with hard links, on a disk that keeps what it has synced. A new key costs two
 * syncs of the disk.
 */
export declare class KeyFolder {
    #private;
    path: string;
    /** @param {string} path It is made where it is missing. */
    constructor(path: string);
    /**
     * The file that keeps the key of `action`.
     *
     * @param {string} action
     */
    keyFile(action: string): string;
    /**
     * What is kept for `action`.
     *
     * @param {string} action
     * @returns {Promise<Taken | undefined>}
     * @throws {KeysError} It cannot be read.
     */
    look(action: string): Promise<Taken | undefined>;
    /**
     * Keeps `fresh` for `action`, unless something is kept: then that is given. It is durable then.
     *
     * @param {string} action
     * @param {Entry} fresh
     * @returns {Promise<Taken>}
     * @throws {KeysError} It cannot be kept or read; no key is made anew then.
     */
    take(action: string, fresh: Entry): Promise<Taken>;
    /**
     * Keeps what the server said under `key`, in place of what it said before.
     *
     * @param {string} action
     * @param {string} key
     * @param {Note} note
     * @throws {KeysError} It cannot be kept.
     */
    note(action: string, key: string, note: Note): Promise<void>;
    /**
     * Forgets `action`, and says whether it was known: from here on it is a new one.
     *
     * @param {string} action
     * @throws {KeysError} It cannot be read or removed.
     */
    forget(action: string): Promise<boolean>;
}
