"""Spans and moments, as the gateway writes them."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from typing import Union

Span = Union[str, int, float, timedelta]
"""A span of time: seconds, a timedelta, or text like ``"30s"``, ``"1h30m"``, ``"7d"``."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+)(ms|s|m|h|d)")


def seconds(span: Span) -> float:
    """`span` in seconds.

    Raises:
        ValueError: It is no span of time, or a negative one.
    """
    if isinstance(span, timedelta):
        value = span.total_seconds()
    elif isinstance(span, str):
        if not re.fullmatch(f"({_PART.pattern})+", span):
            raise ValueError(f"{span!r} is no span of time: write whole numbers with ms, s, m, h or d, like '30s'")
        value = sum(int(number) * _UNITS[unit] for number, unit in _PART.findall(span))
    else:
        value = float(span)
    if not value >= 0:
        raise ValueError(f"{span!r} is no span of time: it is negative")
    return value


def span_text(span: Span) -> str:
    """`span` as the gateway reads it, in milliseconds."""
    return f"{round(seconds(span) * 1000)}ms"


# What the gateway takes, in seconds.
_SHORTEST_WINDOW, _LONGEST_WINDOW = 0.001, 3650 * 86400.0


def window_text(span: Span) -> str:
    """The span for which a result answers, as the gateway reads it: checked before anything runs.

    Raises:
        ValueError: It is no span of time, or none that a result can answer for.
    """
    if not _SHORTEST_WINDOW <= seconds(span) <= _LONGEST_WINDOW:
        raise ValueError(f"a window cannot be {span!r}: a result answers for 1ms to 3650d")
    return span_text(span)


def parse(text: str) -> datetime:
    """The moment that `text` names in RFC 3339.

    Raises:
        ValueError: It names none.
    """
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", text)
    if found is None:
        raise ValueError(f"{text!r} is no moment as RFC 3339 has it")
    day, time, fraction, zone = found.groups()
    zone = "+00:00" if zone in "Zz" else zone
    micros = ((fraction or ".")[1:] + "000000")[:6]
    return datetime.fromisoformat(f"{day}T{time}.{micros}{zone}").astimezone(timezone.utc)


def text(moment: datetime) -> str:
    """`moment` in RFC 3339, in UTC, to the millisecond."""
    return moment.astimezone(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
