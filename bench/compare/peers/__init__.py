"""The compared, in the order of the page's columns."""

from .base import Peer
from .idempotent_proxy import IdempotentProxy
from .onlyonce import Gateway, Layer
from .powertools import Powertools
from .restate import Restate, RestateOneTry
from .servers import AxumIdempotent, SvixModel

PEERS: tuple[type[Peer], ...] = (
    SvixModel,
    AxumIdempotent,
    IdempotentProxy,
    Powertools,
    Restate,
    RestateOneTry,
    Gateway,
    Layer,
)
