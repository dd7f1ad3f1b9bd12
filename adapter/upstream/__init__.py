"""Hosted models behind their APIs."""

from adapter.upstream.capabilities import Capabilities
from adapter.upstream.dialects import Api, connect
from adapter.upstream.transport import Endpoint
from adapter.upstream.upstream import Upstream

__all__ = ["Api", "Capabilities", "Endpoint", "Upstream", "connect"]
