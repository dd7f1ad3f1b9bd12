"""A cache of opaque bytes under keyed digests; it knows nothing of what it keeps."""

from typing import Protocol

from cache.envelope import seal, unseal
from cache.keys import Keys
from cache.memory import MemoryCache

__all__ = ["Cache", "Keys", "MemoryCache", "seal", "unseal"]


class Cache(Protocol):
    """Bytes under keys, any of which may be gone at any time."""

    async def get(self, key: bytes) -> bytes | None:
        """What was put under the key, None where it is not or no longer there."""
        ...

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep the value under the key, in place of what was there."""
        ...
