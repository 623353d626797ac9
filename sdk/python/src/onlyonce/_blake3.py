"""BLAKE3, for short texts: the names and checksums of the files that are shared with `onlyonce call`.

After the specification (https://github.com/BLAKE3-team/BLAKE3-specs). Plain Python hashes about a megabyte a second;
where the package `blake3` is installed it is used instead.
"""

from __future__ import annotations

from struct import pack, unpack
from typing import Any, List, Sequence, Tuple

_IV = (
    0x6A09E667,
    0xBB67AE85,
    0x3C6EF372,
    0xA54FF53A,
    0x510E527F,
    0x9B05688C,
    0x1F83D9AB,
    0x5BE0CD19,
)
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_COLUMNS_AND_DIAGONALS = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8
_CONTEXT, _MATERIAL = 32, 64
_BLOCK, _CHUNK = 64, 1024
_WORD = 0xFFFFFFFF

# The words of the message, as each of the seven rounds takes them.
_SCHEDULE: List[Tuple[int, ...]] = [tuple(range(16))]
for _ in range(6):
    _SCHEDULE.append(tuple(_SCHEDULE[-1][i] for i in _PERMUTATION))


def _compress(cv: Sequence[int], block: bytes, counter: int, flags: int) -> List[int]:
    """The first eight words of the compression of one block."""
    words = unpack("<16I", block.ljust(_BLOCK, b"\0"))
    v = [*cv, *_IV[:4], counter & _WORD, counter >> 32, len(block), flags]
    for order in _SCHEDULE:
        for i, (a, b, c, d) in enumerate(_COLUMNS_AND_DIAGONALS):
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            va = (va + vb + words[order[2 * i]]) & _WORD
            vd ^= va
            vd = (vd >> 16 | vd << 16) & _WORD
            vc = (vc + vd) & _WORD
            vb ^= vc
            vb = (vb >> 12 | vb << 20) & _WORD
            va = (va + vb + words[order[2 * i + 1]]) & _WORD
            vd ^= va
            vd = (vd >> 8 | vd << 24) & _WORD
            vc = (vc + vd) & _WORD
            vb ^= vc
            vb = (vb >> 7 | vb << 25) & _WORD
            v[a], v[b], v[c], v[d] = va, vb, vc, vd
    return [v[i] ^ v[i + 8] for i in range(8)]


def _chunk(key: Sequence[int], data: bytes, counter: int, flags: int) -> List[int]:
    cv: Sequence[int] = key
    last = max(0, (len(data) - 1) // _BLOCK)
    for i in range(last + 1):
        mark = (_CHUNK_START if i == 0 else 0) | (_CHUNK_END if i == last else 0)
        # Only the last block of a root has the mark of one.
        of_root = flags if i == last else flags & ~_ROOT
        cv = _compress(cv, data[i * _BLOCK : (i + 1) * _BLOCK], counter, of_root | mark)
    return list(cv)


def _tree(key: Sequence[int], data: bytes, first: int, flags: int) -> List[int]:
    if len(data) <= _CHUNK:
        return _chunk(key, data, first, flags)
    chunks = (len(data) - 1) // _CHUNK
    left = 1 << (chunks.bit_length() - 1)
    below = flags & ~_ROOT
    words = _tree(key, data[: left * _CHUNK], first, below) + _tree(key, data[left * _CHUNK :], first + left, below)
    return _compress(key, pack("<16I", *words), 0, flags | _PARENT)


def _plain_hash(data: bytes, key: Sequence[int] = _IV, flags: int = 0) -> bytes:
    return pack("<8I", *_tree(key, data, 0, flags | _ROOT))


def _plain_derived(context: str, data: bytes) -> bytes:
    key = unpack("<8I", _plain_hash(context.encode(), flags=_CONTEXT))
    return _plain_hash(data, key, _MATERIAL)


try:
    import blake3 as _found

    _fast: Any = _found.blake3
except ImportError:
    _fast = None


def digest(data: bytes) -> bytes:
    """The hash of `data`, 32 bytes."""
    if _fast is not None:
        return bytes(_fast(data).digest())
    return _plain_hash(data)


def derived(context: str, data: bytes) -> bytes:
    """The hash of `data` in the mode that derives keys, for what `context` names."""
    if _fast is not None:
        return bytes(_fast(data, derive_key_context=context).digest())
    return _plain_derived(context, data)


def parts(context: str, of: Sequence[bytes]) -> str:
    """The derived hash of some parts, each with its length before it, in hexadecimal."""
    return derived(context, b"".join(len(part).to_bytes(8, "little") + part for part in of)).hex()
