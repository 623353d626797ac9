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

import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { link, mkdir, open, readdir, rename, rm, stat, unlink } from "node:fs/promises";
import { dirname, join } from "node:path";
import { isDeepStrictEqual } from "node:util";

import * as blake3 from "./blake3.js";
import { KeysError } from "./errors.js";
import { parse } from "./time.js";

const FORMAT = 1;
// No file of ours is longer, in bytes.
const LONGEST = 64 << 10;
// A key that is forgotten as often between two looks is no key.
const TRIES = 100;
// A file that was being written so many milliseconds ago is what a crash left.
const LEFT_BEHIND = 3_600_000;
const NAME_CONTEXT = "onlyonce-client 1 name of a file";
const FINGERPRINT_CONTEXT = "onlyonce-client 1 fingerprint of a request";
const ACTION_MAX = 1024;

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
export function checkAction(action) {
  if (typeof action !== "string" || action === "") {
    throw new TypeError("the name of the action is empty; name what is to happen once, like order-17/charge");
  }
  if (Buffer.byteLength(action) > ACTION_MAX) {
    throw new TypeError(`the name of the action has more than ${ACTION_MAX} bytes`);
  }
  if (/[\p{Cc}\p{Cs}]/u.test(action)) throw new TypeError("the name of the action has a control character");
  return action;
}

/**
 * What makes two requests of a caller the same request: method, URL and body. Headers are left out.
 *
 * @param {string} method
 * @param {string} url
 * @param {string | Uint8Array} body
 */
export function fingerprint(method, url, body) {
  return blake3.parts(FINGERPRINT_CONTEXT, [method, "", whole(url), body]);
}

/**
 * `url` without its fragment, which is not sent, and with a path.
 *
 * @param {string} url
 */
function whole(url) {
  return url.replace(/#.*$/s, "").replace(/^([^:/?]+:\/\/[^/?]+)(\?|$)/, "$1/$2");
}

/**
 * Keys in a folder, for any number of processes of one machine.
 *
 * The folder must be on a file system with hard links, on a disk that keeps what it has synced. A new key costs two
 * syncs of the disk.
 */
export class KeyFolder {
  /** @type {Promise<void> | undefined} */
  #opened;

  /** @param {string} path It is made where it is missing. */
  constructor(path) {
    this.path = path;
  }

  /**
   * The file that keeps the key of `action`.
   *
   * @param {string} action
   */
  keyFile(action) {
    return join(this.path, `${blake3.parts(NAME_CONTEXT, [action])}.key`);
  }

  /**
   * What is kept for `action`.
   *
   * @param {string} action
   * @returns {Promise<Taken | undefined>}
   * @throws {KeysError} It cannot be read.
   */
  async look(action) {
    const entry = await this.#entry(action);
    return entry && { entry, isNew: false, note: await this.#note(action, entry.key) };
  }

  /**
   * Keeps `fresh` for `action`, unless something is kept: then that is given. It is durable then.
   *
   * @param {string} action
   * @param {Entry} fresh
   * @returns {Promise<Taken>}
   * @throws {KeysError} It cannot be kept or read; no key is made anew then.
   */
  async take(action, fresh) {
    checkAction(action);
    await this.#open();
    const file = this.keyFile(action);
    for (let tries = 0; tries < TRIES; tries += 1) {
      const kept = await this.look(action);
      if (kept) {
        // Who made it may not have come to sync the folder yet, and it is about to be sent.
        await this.#sync();
        return kept;
      }
      const written = await this.#write({
        action,
        key: fresh.key,
        fingerprint: fresh.fingerprint,
        made_at: fresh.madeAt.toISOString(),
      });
      try {
        await link(written, file);
      } catch (error) {
        if (isCode(error, "EEXIST")) continue;
        throw cannot("link a key to", file, error);
      } finally {
        await unlink(written);
      }
      await this.#sync();
      return { entry: fresh, isNew: true, note: undefined };
    }
    throw damaged(file, "it comes and goes");
  }

  /**
   * Keeps what the server said under `key`, in place of what it said before.
   *
   * @param {string} action
   * @param {string} key
   * @param {Note} note
   * @throws {KeysError} It cannot be kept.
   */
  async note(action, key, note) {
    await this.#open();
    const file = this.#noteFile(action, key);
    const written = await this.#write({
      action,
      at: note.at.toISOString(),
      answered: note.answered,
      expires_at: note.expiresAt && note.expiresAt.toISOString(),
    });
    try {
      await rename(written, file);
    } catch (error) {
      await rm(written, { force: true });
      throw cannot("replace", file, error);
    }
    await this.#sync();
  }

  /**
   * Forgets `action`, and says whether it was known: from here on it is a new one.
   *
   * @param {string} action
   * @throws {KeysError} It cannot be read or removed.
   */
  async forget(action) {
    const entry = await this.#entry(action);
    if (!entry) return false;
    // The key first: what is left by a crash in between is a note that nobody looks for.
    for (const file of [this.keyFile(action), this.#noteFile(action, entry.key)]) {
      await rm(file, { force: true }).catch((error) => {
        throw cannot("remove", file, error);
      });
    }
    await this.#sync();
    return true;
  }

  /** @param {string} action @param {string} key */
  #noteFile(action, key) {
    return join(this.path, `${blake3.parts(NAME_CONTEXT, [action, key])}.note`);
  }

  #open() {
    this.#opened ??= makeFolder(this.path)
      .then(() => makeFolder(join(this.path, "new")))
      .then(() => removeLeftBehind(join(this.path, "new")))
      .catch((error) => {
        this.#opened = undefined;
        throw cannot("open", this.path, error);
      });
    return this.#opened;
  }

  /** @param {string} action @returns {Promise<Entry | undefined>} */
  async #entry(action) {
    const file = this.keyFile(action);
    const kept = await read(file, ["action", "key", "fingerprint", "made_at"]);
    if (!kept) return undefined;
    if (kept.action !== action) throw damaged(file, "it is of another action");
    return { key: kept.key, fingerprint: kept.fingerprint, madeAt: moment(file, kept.made_at) };
  }

  /** @param {string} action @param {string} key @returns {Promise<Note | undefined>} */
  async #note(action, key) {
    const file = this.#noteFile(action, key);
    const kept = await read(file, ["action", "at", "answered", "expires_at"]);
    if (!kept) return undefined;
    const end = kept.expires_at;
    return {
      at: moment(file, kept.at),
      answered: kept.answered,
      expiresAt: end === null ? null : moment(file, end),
    };
  }

  /**
   * Writes `kept` to a new file under a name that nobody looks for, synced; its path.
   *
   * @param {object} kept
   */
  async #write(kept) {
    const file = join(this.path, "new", randomUUID().replaceAll("-", ""));
    try {
      const out = await open(file, "wx", 0o600);
      try {
        await out.writeFile(checked(kept));
        await out.sync();
      } finally {
        await out.close();
      }
    } catch (error) {
      await rm(file, { force: true });
      throw cannot("write", file, error);
    }
    return file;
  }

  async #sync() {
    await syncFolder(this.path).catch((error) => {
      throw cannot("sync", this.path, error);
    });
  }
}

/** @param {object} kept */
function checked(kept) {
  const check = blake3.digest(Buffer.from(JSON.stringify(kept)));
  return `${JSON.stringify({ format: FORMAT, kept, check })}\n`;
}

/**
 * What the file keeps, with its members in this order; undefined where there is none.
 *
 * @param {string} file
 * @param {string[]} names
 * @returns {Promise<any>}
 */
async function read(file, names) {
  const text = await content(file);
  if (text === undefined) return undefined;
  let found;
  try {
    found = JSON.parse(text);
  } catch (error) {
    throw damaged(file, String(error));
  }
  if (Number.isInteger(found?.format) && found.format > FORMAT) {
    throw new KeysError(
      `${file} has format ${found.format}, and this version reads up to ${FORMAT}.`,
      NOTHING,
      "Use the newer version.",
    );
  }
  const kept = Object.fromEntries(names.map((name) => [name, found?.kept?.[name]]));
  if (!isDeepStrictEqual(found, { format: FORMAT, kept, check: found?.check })) {
    throw damaged(file, "it has other members");
  }
  if (blake3.digest(Buffer.from(JSON.stringify(kept))) !== found.check) {
    throw damaged(file, "its checksum is another");
  }
  return kept;
}

/** @param {string} file @returns {Promise<string | undefined>} */
async function content(file) {
  try {
    // A link that leads nowhere is there, though nothing can be read; a pipe would be waited for.
    const source = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    try {
      if (!(await source.stat()).isFile()) throw damaged(file, "it is no regular file");
      const { bytesRead, buffer } = await source.read(Buffer.alloc(LONGEST), 0, LONGEST, 0);
      return buffer.toString("utf8", 0, bytesRead);
    } finally {
      await source.close();
    }
  } catch (error) {
    if (isCode(error, "ENOENT")) return undefined;
    if (isCode(error, "ELOOP")) throw damaged(file, "it is a link");
    if (error instanceof KeysError) throw error;
    throw cannot("read", file, error);
  }
}

/** @param {string} path */
async function makeFolder(path) {
  const first = await mkdir(path, { recursive: true, mode: 0o700 });
  if (first === undefined) return;
  // So that all that was made is still there after a power cut.
  for (let made = path; ; made = dirname(made)) {
    await syncFolder(dirname(made));
    if (made.length <= first.length) return;
  }
}

/** @param {string} folder */
async function removeLeftBehind(folder) {
  for (const name of await readdir(folder)) {
    const file = join(folder, name);
    // One that cannot be looked at or removed harms nobody.
    const found = await stat(file).catch(() => undefined);
    if (found && Date.now() - found.mtimeMs > LEFT_BEHIND) await rm(file, { force: true }).catch(() => {});
  }
}

/** @param {string} folder */
async function syncFolder(folder) {
  const handle = await open(folder, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

const NOTHING = "This call sent nothing.";

/** @param {unknown} error @param {string} code */
function isCode(error, code) {
  return error instanceof Error && "code" in error && error.code === code;
}

/** @param {string} doing @param {string} path @param {unknown} error */
function cannot(doing, path, error) {
  const why = error instanceof Error ? error.message : String(error);
  const next = "Make it writable and give it space, then call again.";
  return new KeysError(`Cannot ${doing} ${path}: ${why}.`, NOTHING, next, { cause: error });
}

/** @param {string} file @param {string} why */
function damaged(file, why) {
  return new KeysError(
    `${file} is damaged (${why}).`,
    `${NOTHING} A new key could run the action twice.`,
    "Find out at the server whether it ran, and remove the file only then.",
  );
}

/** @param {string} file @param {unknown} text */
function moment(file, text) {
  try {
    return parse(text);
  } catch (error) {
    throw damaged(file, String(error));
  }
}
