"""A cache of opaque bytes under keyed digests, and shared totals; it knows not what they mean."""

from cache.cache import Cache, CacheError, Stats
from cache.envelope import place, seal, unseal
from cache.flight import Flight
from cache.keys import Keys
from cache.lease import Lease
from cache.memory import MemoryCache
from cache.open import Totals, is_shared, open_cache, open_totals
from cache.totals import LocalTotal, Total

__all__ = [
    "Cache",
    "CacheError",
    "Flight",
    "Keys",
    "Lease",
    "LocalTotal",
    "MemoryCache",
    "Stats",
    "Total",
    "Totals",
    "is_shared",
    "open_cache",
    "open_totals",
    "place",
    "seal",
    "unseal",
]
