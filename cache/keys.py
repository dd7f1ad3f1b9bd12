"""Cache keys that nobody without the secret can make or read back."""

import hashlib
import hmac
import secrets

_PROCESS_SECRET = secrets.token_bytes(32)


class Keys:
    """Makes keys from fields; without a `secret` they are good for this process only."""

    def __init__(self, secret: bytes | None = None) -> None:
        self._secret = _PROCESS_SECRET if secret is None else secret

    def key(self, *fields: bytes | None) -> bytes:
        """HMAC-SHA-256 of the fields; other fields, order, borders or a None give another key."""
        state = hmac.new(self._secret, digestmod=hashlib.sha256)
        for field in fields:
            state.update(b"\0" if field is None else b"\1" + len(field).to_bytes(8, "big") + field)
        return state.digest()
