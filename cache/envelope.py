"""The wrapping of stored values: whatever comes back altered or misplaced is a miss.

magic 4 | version 1 | sha256 of the key 32 | payload length 8 | payload | sha256 of all before 32
"""

import hashlib
import struct

_HEAD = struct.Struct(">4sB32sQ")
_MAGIC = b"PTAC"
_VERSION = 1
_SUM = 32


def seal(key: bytes, payload: bytes) -> bytes:
    """The payload, fit to be stored under the key."""
    head = _HEAD.pack(_MAGIC, _VERSION, hashlib.sha256(key).digest(), len(payload))
    return head + payload + hashlib.sha256(head + payload).digest()


def unseal(key: bytes, blob: bytes) -> bytes | None:
    """What was sealed for this key, None for anything else."""
    if len(blob) < _HEAD.size + _SUM:
        return None
    payload = blob[_HEAD.size : -_SUM]
    return payload if blob == seal(key, payload) else None
