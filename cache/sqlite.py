"""A cache in one SQLite file, which outlives the process."""

import asyncio
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cache.cache import CacheError, Stats
from cache.quiet import Quiet

_log = logging.getLogger(__name__)

T = TypeVar("T")

_APPLICATION = 0x50544143  # "PTAC", as envelopes begin
_VERSION = 1
_BUSY = 0.05
"""Seconds to wait for another process that writes; after that a `get` is a miss."""

_OVERHEAD = 256
"""Bytes an entry is counted for beside its value, in the triggers below too: key, indices, page."""

_SCHEMA = (
    """CREATE TABLE entries (
      id INTEGER PRIMARY KEY AUTOINCREMENT,
      key BLOB NOT NULL UNIQUE, value BLOB NOT NULL, expires REAL NOT NULL)""",
    "CREATE TABLE used (bytes INTEGER NOT NULL)",
    "INSERT INTO used VALUES (0)",
    """CREATE TRIGGER added AFTER INSERT ON entries BEGIN
      UPDATE used SET bytes = bytes + length(new.value) + 256; END""",
    """CREATE TRIGGER removed AFTER DELETE ON entries BEGIN
      UPDATE used SET bytes = bytes - length(old.value) - 256; END""",
    f"PRAGMA application_id = {_APPLICATION}",
    f"PRAGMA user_version = {_VERSION}",
)


class SqliteCache:
    """At most `size` bytes of entries, the oldest go first; each lives `ttl` seconds.

    One thread of its own does the work. Several processes may share the file. Whatever breaks at
    run time is a miss. Raises CacheError for a file that is not this cache's.
    """

    def __init__(
        self, path: Path, size: int, ttl: float, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._size = size
        self._ttl = ttl
        self._clock = clock
        self._hits = self._misses = self._failures = 0
        self._quiet = Quiet(_log)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite-cache")
        try:
            self._connection = self._thread.submit(self._open).result()
        except BaseException:
            self._thread.shutdown()
            raise

    @property
    def shared(self) -> bool:
        """Yes: by later processes at least."""
        return True

    @property
    def failures(self) -> int:
        """Calls that found the file locked, full or broken."""
        return self._failures

    async def get(self, key: bytes) -> bytes | None:
        """The value, if it is there, not too old and readable."""
        value = await self._try(lambda: self._get(key))
        if value is None:
            self._misses += 1
        else:
            self._hits += 1
        return value

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep the value unless it could never fit or cannot be written."""
        await self._try(lambda: self._put(key, value))

    async def clear(self) -> int:
        """Drop everything and give the space back. Raises CacheError."""
        try:
            return await self._run(self._clear)
        except sqlite3.Error as error:
            raise CacheError(f"{self._path} cannot be cleared: {error}") from error

    async def stats(self) -> Stats:
        """Counts of this process, and of the file where it can be read."""
        entries, used = await self._try(self._count) or (None, None)
        return Stats(entries, used, self._hits, self._misses, self._failures)

    async def close(self) -> None:
        """Close the file."""
        await self._run(self._connection.close)
        self._thread.shutdown()

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _try(self, work: Callable[[], T]) -> T | None:
        """The work's result, None where the file is locked, full or broken."""
        try:
            return await self._run(work)
        except sqlite3.Error as error:
            self._failures += 1
            self._quiet.warn("cache: %s fails (%s)", self._path, type(error).__name__)
            return None

    def _open(self) -> sqlite3.Connection:
        try:
            # Created for its owner alone; SQLite gives its side files the same rights.
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(self._path, timeout=_BUSY, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise CacheError(f"{self._path} cannot be opened: {error}") from error
        try:
            self._prepare(connection)
        except sqlite3.Error as error:
            connection.close()
            raise CacheError(f"{self._path} cannot be used as a cache: {error}") from error
        except CacheError:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA busy_timeout = 5000")  # others may be opening it, too
        if _empty(connection):
            connection.execute("PRAGMA journal_mode = WAL")
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA if _empty(connection) else ():
                    connection.execute(statement)
        found = [
            connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("application_id", "user_version")
        ]
        if found[0] != _APPLICATION:
            raise CacheError(f"{self._path} is a database of something else")
        if found[1] != _VERSION:
            raise CacheError(f"{self._path} has format {found[1]}, not {_VERSION}; delete it")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM entries WHERE expires <= ?", (self._clock(),))
            self._evict(connection)
        connection.execute(f"PRAGMA busy_timeout = {round(_BUSY * 1000)}")

    def _get(self, key: bytes) -> bytes | None:
        query = "SELECT value FROM entries WHERE key = ? AND expires > ?"
        row = self._connection.execute(query, (key, self._clock())).fetchone()
        return row[0] if row and isinstance(row[0], bytes) else None

    def _put(self, key: bytes, value: bytes) -> None:
        with self._connection as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM entries WHERE key = ?", (key,))
            if len(value) + _OVERHEAD > self._size:
                return
            connection.execute(
                "INSERT INTO entries (key, value, expires) VALUES (?, ?, ?)",
                (key, value, self._clock() + self._ttl),
            )
            self._evict(connection)

    def _evict(self, connection: sqlite3.Connection) -> None:
        oldest = "DELETE FROM entries WHERE id = (SELECT min(id) FROM entries)"
        while connection.execute("SELECT bytes FROM used").fetchone()[0] > self._size:
            if not connection.execute(oldest).rowcount:
                raise sqlite3.DatabaseError("the sum of bytes is wrong")

    def _clear(self) -> int:
        count = self._connection.execute("DELETE FROM entries").rowcount
        self._connection.execute("VACUUM")
        return count

    def _count(self) -> tuple[int, int]:
        query = "SELECT (SELECT count(*) FROM entries), bytes FROM used"
        entries, used = self._connection.execute(query).fetchone()
        return entries, used


def _empty(connection: sqlite3.Connection) -> bool:
    return bool(connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,))
