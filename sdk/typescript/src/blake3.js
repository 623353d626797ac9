/**
 * BLAKE3, for the names and checksums of the files that are shared with `onlyonce call`.
 *
 * After the specification (https://github.com/BLAKE3-team/BLAKE3-specs).
 */

const IV = Uint32Array.of(
  0x6a09e667,
  0xbb67ae85,
  0x3c6ef372,
  0xa54ff53a,
  0x510e527f,
  0x9b05688c,
  0x1f83d9ab,
  0x5be0cd19,
);
const PERMUTATION = [2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8];
const CHUNK_START = 1;
const CHUNK_END = 2;
const PARENT = 4;
const ROOT = 8;
const CONTEXT = 32;
const MATERIAL = 64;
const BLOCK = 64;
const CHUNK = 1024;

// The words of the message, as each of the seven rounds takes them.
const SCHEDULE = [[...PERMUTATION.keys()]];
for (let round = 1; round < 7; round += 1) SCHEDULE.push(PERMUTATION.map((i) => SCHEDULE[round - 1][i]));

/**
 * The first eight words of the compression of one block.
 *
 * @param {Uint32Array} cv
 * @param {Uint8Array} block
 * @param {number} counter
 * @param {number} flags
 */
function compress(cv, block, counter, flags) {
  const padded = new Uint8Array(BLOCK);
  padded.set(block);
  const view = new DataView(padded.buffer);
  const words = Uint32Array.from({ length: 16 }, (_, i) => view.getUint32(4 * i, true));
  const v = new Uint32Array(16);
  v.set(cv);
  v.set(IV.subarray(0, 4), 8);
  v.set([counter, counter / 2 ** 32, block.length, flags], 12);
  /** @param {number} a @param {number} b @param {number} c @param {number} d @param {number} x @param {number} y */
  const mix = (a, b, c, d, x, y) => {
    v[a] += v[b] + x;
    v[d] = rotate(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = rotate(v[b] ^ v[c], 12);
    v[a] += v[b] + y;
    v[d] = rotate(v[d] ^ v[a], 8);
    v[c] += v[d];
    v[b] = rotate(v[b] ^ v[c], 7);
  };
  for (const m of SCHEDULE) {
    mix(0, 4, 8, 12, words[m[0]], words[m[1]]);
    mix(1, 5, 9, 13, words[m[2]], words[m[3]]);
    mix(2, 6, 10, 14, words[m[4]], words[m[5]]);
    mix(3, 7, 11, 15, words[m[6]], words[m[7]]);
    mix(0, 5, 10, 15, words[m[8]], words[m[9]]);
    mix(1, 6, 11, 12, words[m[10]], words[m[11]]);
    mix(2, 7, 8, 13, words[m[12]], words[m[13]]);
    mix(3, 4, 9, 14, words[m[14]], words[m[15]]);
  }
  return Uint32Array.from({ length: 8 }, (_, i) => v[i] ^ v[i + 8]);
}

/** @param {number} word @param {number} by */
function rotate(word, by) {
  return (word >>> by) | (word << (32 - by));
}

/**
 * @param {Uint32Array} key
 * @param {Uint8Array} data
 * @param {number} counter
 * @param {number} flags
 */
function chunk(key, data, counter, flags) {
  let cv = key;
  const last = Math.max(0, Math.ceil(data.length / BLOCK) - 1);
  for (let i = 0; i <= last; i += 1) {
    const mark = (i === 0 ? CHUNK_START : 0) | (i === last ? CHUNK_END : 0);
    // Only the last block of a root has the mark of one.
    const ofRoot = i === last ? flags : flags & ~ROOT;
    cv = compress(cv, data.subarray(i * BLOCK, (i + 1) * BLOCK), counter, ofRoot | mark);
  }
  return cv;
}

/**
 * @param {Uint32Array} key
 * @param {Uint8Array} data
 * @param {number} first The number of its first chunk.
 * @param {number} flags
 * @returns {Uint32Array}
 */
function tree(key, data, first, flags) {
  if (data.length <= CHUNK) return chunk(key, data, first, flags);
  const left = 2 ** Math.floor(Math.log2(Math.ceil(data.length / CHUNK) - 1));
  const below = flags & ~ROOT;
  const words = Uint32Array.of(
    ...tree(key, data.subarray(0, left * CHUNK), first, below),
    ...tree(key, data.subarray(left * CHUNK), first + left, below),
  );
  return compress(key, bytes(words), 0, flags | PARENT);
}

/** @param {Uint32Array} words */
function bytes(words) {
  const out = new DataView(new ArrayBuffer(words.length * 4));
  words.forEach((word, i) => out.setUint32(4 * i, word, true));
  return new Uint8Array(out.buffer);
}

/** @param {Uint32Array} words */
function hex(words) {
  return Buffer.from(bytes(words)).toString("hex");
}

/**
 * The hash of `data`, in hexadecimal.
 *
 * @param {Uint8Array} data
 */
export function digest(data) {
  return hex(tree(IV, data, 0, ROOT));
}

/**
 * The hash of `data` in the mode that derives keys, for what `context` names; in hexadecimal.
 *
 * @param {string} context
 * @param {Uint8Array} data
 */
export function derived(context, data) {
  return hex(tree(tree(IV, Buffer.from(context), 0, ROOT | CONTEXT), data, 0, ROOT | MATERIAL));
}

/**
 * The derived hash of some parts, each with its length before it.
 *
 * @param {string} context
 * @param {(string | Uint8Array)[]} of
 */
export function parts(context, of) {
  const pieces = of.flatMap((part) => {
    const content = Buffer.from(part);
    const length = Buffer.alloc(8);
    length.writeBigUInt64LE(BigInt(content.length));
    return [length, content];
  });
  return derived(context, Buffer.concat(pieces));
}
