"""A cache of opaque bytes under keyed digests; it knows nothing of what it keeps."""

from cache.cache import Cache, CacheError, Stats
from cache.envelope import seal, unseal
from cache.flight import Flight
from cache.keys import Keys
from cache.memory import MemoryCache

__all__ = ["Cache", "CacheError", "Flight", "Keys", "MemoryCache", "Stats", "seal", "unseal"]
