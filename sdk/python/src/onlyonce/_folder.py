"""A folder of keys: one small file for each action, shared with `onlyonce call` and the Rust client.

::

    FOLDER/<hash of the action>.key           the key, its request, when it was made. Written once
    FOLDER/<hash of action and key>.note      what the server said last. Replaced as a whole
    FOLDER/new/<random>                       being written

The format, and why it is so, is that of ``crates/client/src/folder.rs``: a key file is written under another name,
synced, linked to its own name, which fails where that exists, and the folder is synced. It is never written again.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time
import unicodedata
import uuid
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

from . import _blake3 as blake3
from ._errors import KeysError
from ._time import parse, text

_FORMAT = 1
# No file of ours is longer, in bytes.
_LONGEST = 64 << 10
# A key that is forgotten as often between two looks is no key.
_TRIES = 100
# A file that was being written so many seconds ago is what a crash left.
_LEFT_BEHIND = 3600
_NAME_CONTEXT = "onlyonce-client 1 name of a file"
_FINGERPRINT_CONTEXT = "onlyonce-client 1 fingerprint of a request"
_ACTION_MAX = 1024


@dataclass(frozen=True)
class Entry:
    """What is kept for an action before anything is sent."""

    key: str
    fingerprint: str
    """The request that the key is for, in hexadecimal."""
    made_at: datetime


@dataclass(frozen=True)
class Note:
    """What the server said last of an action."""

    at: datetime
    answered: Optional[int]
    """The status of an answer; none where the outcome is unknown."""
    expires_at: Optional[datetime]
    """The end of the server's window, where it told it."""

    @property
    def is_success(self) -> bool:
        """Whether it is an answer that is no error."""
        return self.answered is not None and self.answered < 400


@dataclass(frozen=True)
class Taken:
    """What `KeyFolder.take` found or made."""

    entry: Entry
    is_new: bool
    """Whether this call made it, so that nothing can have been sent under it."""
    note: Optional[Note]


def check_action(action: str) -> str:
    """`action`, where it names one.

    Raises:
        ValueError: It is empty, over 1024 bytes, or has control characters.
    """
    if not action:
        raise ValueError("the name of the action is empty; name what is to happen once, like order-17/charge")
    if len(action.encode()) > _ACTION_MAX:
        raise ValueError(f"the name of the action has more than {_ACTION_MAX} bytes")
    if any(unicodedata.category(char) == "Cc" for char in action):
        raise ValueError("the name of the action has a control character")
    return action


def fingerprint(method: str, url: str, body: bytes) -> str:
    """What makes two requests of a caller the same request: method, URL and body. Headers are left out."""
    parts = [method.encode(), b"", _whole(url).encode(), body]
    return blake3.parts(_FINGERPRINT_CONTEXT, parts)


def _whole(url: str) -> str:
    """`url` without its fragment, which is not sent, and with a path."""
    url = url.partition("#")[0]
    scheme, mark, rest = url.partition("://")
    if mark and "/" not in rest:
        host, query, more = rest.partition("?")
        rest = f"{host}/{query}{more}"
    return f"{scheme}{mark}{rest}"


class KeyFolder:
    """Keys in a folder, for any number of processes of one machine.

    The folder must be on a file system with hard links, on a disk that keeps what it has synced. A new key costs two
    syncs of the disk. Everything here blocks for them.
    """

    def __init__(self, path: Union[str, os.PathLike[str]]) -> None:
        """Opens the folder, and makes it where it is missing.

        Raises:
            KeysError: It cannot be made.
        """
        self.path = Path(path)
        self._new = self.path / "new"
        try:
            _make_folder(self.path)
            _make_folder(self._new)
            _remove_left_behind(self._new)
        except OSError as error:
            raise _cannot("open", self.path, error) from error

    def key_file(self, action: str) -> Path:
        """The file that keeps the key of `action`."""
        return self.path / f"{blake3.parts(_NAME_CONTEXT, [action.encode()])}.key"

    def look(self, action: str) -> Optional[Taken]:
        """What is kept for `action`.

        Raises:
            KeysError: It cannot be read.
        """
        entry = self._entry(action)
        return None if entry is None else Taken(entry, False, self._note(action, entry.key))

    def take(self, action: str, fresh: Entry) -> Taken:
        """Keeps `fresh` for `action`, unless something is kept: then that is returned. It is durable then.

        Raises:
            KeysError: It cannot be kept or read; no key is made anew then.
        """
        check_action(action)
        file = self.key_file(action)
        for _ in range(_TRIES):
            kept = self.look(action)
            if kept is not None:
                # Who made it may not have come to sync the folder yet, and it is about to be sent.
                self._sync()
                return kept
            written = self._write(
                {
                    "action": action,
                    "key": fresh.key,
                    "fingerprint": fresh.fingerprint,
                    "made_at": text(fresh.made_at),
                }
            )
            try:
                os.link(written, file)
            except FileExistsError:
                continue
            except OSError as error:
                raise _cannot("link a key to", file, error) from error
            finally:
                written.unlink()
            self._sync()
            return Taken(fresh, True, None)
        raise _damaged(file, "it comes and goes")

    def note(self, action: str, key: str, note: Note) -> None:
        """Keeps what the server said under `key`, in place of what it said before.

        Raises:
            KeysError: It cannot be kept.
        """
        file = self._note_file(action, key)
        written = self._write(
            {
                "action": action,
                "at": text(note.at),
                "answered": note.answered,
                "expires_at": None if note.expires_at is None else text(note.expires_at),
            }
        )
        try:
            os.replace(written, file)
        except OSError as error:
            written.unlink()
            raise _cannot("replace", file, error) from error
        self._sync()

    def forget(self, action: str) -> bool:
        """Forgets `action`, and says whether it was known: from here on it is a new one.

        Raises:
            KeysError: It cannot be read or removed.
        """
        entry = self._entry(action)
        if entry is None:
            return False
        # The key first: what is left by a crash in between is a note that nobody looks for.
        for file in (self.key_file(action), self._note_file(action, entry.key)):
            try:
                file.unlink()
            except FileNotFoundError:
                pass
            except OSError as error:
                raise _cannot("remove", file, error) from error
        self._sync()
        return True

    def _note_file(self, action: str, key: str) -> Path:
        return self.path / f"{blake3.parts(_NAME_CONTEXT, [action.encode(), key.encode()])}.note"

    def _entry(self, action: str) -> Optional[Entry]:
        file = self.key_file(action)
        kept = _read(file, ["action", "key", "fingerprint", "made_at"])
        if kept is None:
            return None
        if kept["action"] != action:
            raise _damaged(file, "it is of another action")
        try:
            return Entry(str(kept["key"]), str(kept["fingerprint"]), parse(kept["made_at"]))
        except (TypeError, ValueError) as error:
            raise _damaged(file, str(error)) from None

    def _note(self, action: str, key: str) -> Optional[Note]:
        file = self._note_file(action, key)
        kept = _read(file, ["action", "at", "answered", "expires_at"])
        if kept is None:
            return None
        try:
            end = kept["expires_at"]
            return Note(parse(kept["at"]), kept["answered"], None if end is None else parse(end))
        except (TypeError, ValueError) as error:
            raise _damaged(file, str(error)) from None

    def _write(self, kept: Mapping[str, Any]) -> Path:
        """Writes `kept` to a new file under a name that nobody looks for, synced; its path."""
        file = self._new / uuid.uuid4().hex
        try:
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(_checked(kept))
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            file.unlink() if file.exists() else None
            raise _cannot("write", file, error) from error
        return file

    def _sync(self) -> None:
        try:
            _sync_folder(self.path)
        except OSError as error:
            raise _cannot("sync", self.path, error) from error


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _checked(kept: Mapping[str, Any]) -> bytes:
    check = blake3.digest(_compact(kept).encode()).hex()
    return (_compact({"format": _FORMAT, "kept": kept, "check": check}) + "\n").encode()


def _read(file: Path, names: List[str]) -> Optional[Dict[str, Any]]:
    """What the file keeps, with its members in this order; None where there is none."""
    try:
        # A link that leads nowhere is there, though nothing can be read; a pipe would be waited for.
        handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise _damaged(file, "it is no regular file")
            # The whole of a regular file, which is much shorter.
            content = os.read(handle, _LONGEST)
        finally:
            os.close(handle)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _damaged(file, "it is a link") from None
        raise _cannot("read", file, error) from error
    try:
        found: Any = json.loads(content)
        format = found["format"]
        if isinstance(format, int) and format > _FORMAT:
            raise _newer(file, format)
        kept = {name: found["kept"][name] for name in names}
        if found != {"format": _FORMAT, "kept": kept, "check": found["check"]}:
            raise _damaged(file, "it has other members")
        if blake3.digest(_compact(kept).encode()).hex() != found["check"]:
            raise _damaged(file, "its checksum is another")
        return kept
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from None


def _make_folder(path: Path) -> None:
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    # So that it is still there after a power cut.
    for made in missing:
        _sync_folder(made.parent)


def _remove_left_behind(folder: Path) -> None:
    for file in folder.iterdir():
        try:
            if time.time() - file.stat().st_mtime > _LEFT_BEHIND:
                file.unlink()
        except OSError:
            # One that cannot be looked at or removed harms nobody.
            continue


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_NOTHING = "This call sent nothing."


def _cannot(doing: str, path: Path, error: OSError) -> KeysError:
    return KeysError(
        f"Cannot {doing} {path}: {error.strerror or error}.",
        _NOTHING,
        "Make it writable and give it space, then call again.",
    )


def _damaged(file: Path, why: str) -> KeysError:
    return KeysError(
        f"{file} is damaged ({why}).",
        f"{_NOTHING} A new key could run the action twice.",
        "Find out at the server whether it ran, and remove the file only then.",
    )


def _newer(file: Path, format: int) -> KeysError:
    return KeysError(
        f"{file} has format {format}, and this version reads up to {_FORMAT}.", _NOTHING, "Use the newer version."
    )
