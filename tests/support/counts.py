"""How often the long tests repeat what they do: all of it with FULL=1, else a twentieth."""

import os

FULL = os.environ.get("FULL", "0") not in ("", "0")


def count(full: int, part: int = 20) -> int:
    """So many with `make test FULL=1` and for tests/RELIABILITY.md; a twentieth in CI.

    `part`: less than that, where a twentieth shows no more and takes long.
    """
    return full if FULL else max(1, full // part)
