"""How long a key may still be sent."""

from __future__ import annotations

from datetime import datetime, timedelta

from ._errors import ClockWentBack, WindowOver
from ._folder import Taken
from ._time import text

# What the server's clock, the way to it and a slow attempt may take away from the window; a tenth of the window
# where that is less.
_MARGIN = timedelta(minutes=1)


def check(action: str, taken: Taken, length: timedelta, now: datetime) -> None:
    """Raises where the server may have forgotten the key of `action` by `now`.

    The window ends when the server said, or else `length` after the key was made.

    Raises:
        WindowOver, ClockWentBack
    """
    made_at = taken.entry.made_at
    told = taken.note.expires_at if taken.note else None
    try:
        ends_at = told or made_at + length
    except OverflowError:
        # What cannot be reckoned is over.
        ends_at = made_at
    margin = min(_MARGIN, max(ends_at - made_at, timedelta()) / 10)
    past = max(made_at, taken.note.at) if taken.note else made_at
    # Clocks are put right by small steps all the time.
    if past - now > margin:
        raise ClockWentBack(
            f"The clock says {text(now)}, and {action} was called at {text(past)}: nobody can tell whether the server "
            "still knows its key.",
            "It may have run, and to send it again could run it a second time. This call sent nothing.",
            "Set the clock right, then call again with the same action.",
        )
    if ends_at - max(now, past) - margin <= timedelta():
        raise _over(action, taken, ends_at)


def _over(action: str, taken: Taken, ends_at: datetime) -> WindowOver:
    happened = f"The server may have forgotten the key of {action}: its window ends at {text(ends_at)}."
    if taken.is_new:
        next = "Give the keys a window that is longer than its margin."
        return WindowOver(happened, "This call sent nothing.", next, ends_at)
    said = taken.note
    last = (
        f"The server's last answer was {said.answered}, at {text(said.at)}."
        if said is not None and said.answered is not None
        else "It may have run."
    )
    return WindowOver(
        happened,
        f"{last} To send it again could run it a second time.",
        "Find out at the server whether it ran. If it did, use what is there. If it did not, forget the action and "
        "call again: it then gets a new key.",
        ends_at,
    )
