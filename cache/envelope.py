"""The wrapping of stored values: whatever comes back altered, misplaced or forged is a miss.

magic 4 | version 1 | place of the key 32 | payload length 8 | payload | HMAC of all before 32
"""

import hashlib
import hmac
import struct

_HEAD = struct.Struct(">4sB32sQ")
_MAGIC = b"PTAC"
_VERSION = 2
_SUM = 32


def place(key: bytes) -> bytes:
    """Where the value of a key is kept: who sees the place there cannot seal a value for it."""
    return hashlib.sha256(key).digest()


def seal(key: bytes, payload: bytes) -> bytes:
    """The payload, fit to be stored; to make it takes the key."""
    head = _HEAD.pack(_MAGIC, _VERSION, place(key), len(payload))
    return head + payload + hmac.digest(key, head + payload, "sha256")


def unseal(key: bytes, blob: bytes) -> bytes | None:
    """What was sealed for this key, None for anything else."""
    if len(blob) < _HEAD.size + _SUM:
        return None
    payload = blob[_HEAD.size : -_SUM]
    return payload if hmac.compare_digest(blob, seal(key, payload)) else None
