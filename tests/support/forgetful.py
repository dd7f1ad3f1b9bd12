"""A cache that loses some or all of what it is given."""

from typing import Literal

from cache import MemoryCache


class Forgetful(MemoryCache):
    """`lost`: which reads find nothing, half of them or all; "none" for a sound one."""

    def __init__(self, lost: Literal["none", "half", "all"]) -> None:
        super().__init__(10**7, 60.0)
        self._lost = lost
        self._reads = 0

    async def get(self, key: bytes) -> bytes | None:
        self._reads += 1
        gone = self._lost == "all" or (self._lost == "half" and self._reads % 2)
        return None if gone else await super().get(key)
