"""Side effects that run once: for workers, jobs and agents, by the operations API of an Onlyonce gateway.

Three things are here:

- `Client` and `AsyncClient`: operations of your own, the ``once`` decorator, tools of agent loops.
- `ActionKeys`: keys that survive a crash, for the official OpenAI, Anthropic and Stripe clients, and for any other.
- The errors, each of which says what happened, what it means and what to do.
"""

from ._actions import ActionCall, ActionKeys
from ._client import AsyncClient, Client
from ._errors import (
    ActionReused,
    AlreadySettled,
    BadToolCall,
    ClaimLost,
    ClockWentBack,
    DidNotRun,
    InFlight,
    KeyPresent,
    KeyReused,
    KeysError,
    LeaseOver,
    NoSuchOperation,
    NothingRan,
    NotRecorded,
    OnlyonceError,
    Refused,
    ResultTooLarge,
    ToolCallChanged,
    Unavailable,
    Unknown,
    WindowOver,
)
from ._folder import KeyFolder
from ._once import once
from ._operation import AsyncOperation, Operation, current
from ._protocol import Claim, Freed, Replay, Retry, Running, Work
from ._tools import AsyncTools, ToolCall, Tools

__version__ = "0.1.0"

__all__ = [
    "ActionCall",
    "ActionKeys",
    "ActionReused",
    "AlreadySettled",
    "AsyncClient",
    "AsyncOperation",
    "AsyncTools",
    "BadToolCall",
    "Claim",
    "ClaimLost",
    "Client",
    "ClockWentBack",
    "DidNotRun",
    "Freed",
    "InFlight",
    "KeyFolder",
    "KeyPresent",
    "KeyReused",
    "KeysError",
    "LeaseOver",
    "NoSuchOperation",
    "NotRecorded",
    "NothingRan",
    "OnlyonceError",
    "Operation",
    "Refused",
    "Replay",
    "ResultTooLarge",
    "Retry",
    "Running",
    "ToolCall",
    "ToolCallChanged",
    "Tools",
    "Unavailable",
    "Unknown",
    "WindowOver",
    "Work",
    "current",
    "once",
]
