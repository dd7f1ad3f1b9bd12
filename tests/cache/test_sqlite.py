"""The SQLite cache: survives restarts and crashes, bounded, and never in the way."""

import asyncio
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import CacheError
from cache.sqlite import SqliteCache
from tests.support.clock import Clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


async def test_keeps_what_was_put_beyond_the_process(path: Path) -> None:
    cache = SqliteCache(path, 10**6, 60)
    await cache.put(b"k", b"one")
    await cache.put(b"k", b"two")
    await cache.put(b"\0" * 32, b"")
    await cache.close()
    cache = SqliteCache(path, 10**6, 60)
    assert await cache.get(b"k") == b"two"
    assert await cache.get(b"\0" * 32) == b""
    assert await cache.get(b"other") is None
    stats = await cache.stats()
    assert (stats.entries, stats.bytes, stats.hits, stats.misses) == (2, 3 + 2 * 256, 2, 1)
    assert cache.shared
    await cache.close()


async def test_is_its_owners_alone(path: Path) -> None:
    cache = SqliteCache(path, 10**6, 60)
    await cache.put(b"k", b"v")
    files = sorted(path.parent.iterdir())
    assert len(files) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await cache.close()


async def test_entries_die_of_age_and_are_swept_at_the_next_start(path: Path) -> None:
    clock = Clock()
    cache = SqliteCache(path, 10**6, 10, clock=clock)
    await cache.put(b"old", b"v")
    clock.now = 5
    await cache.put(b"new", b"v")
    clock.now = 10
    assert (await cache.get(b"old"), await cache.get(b"new")) == (None, b"v")
    await cache.close()
    cache = SqliteCache(path, 10**6, 10, clock=clock)
    assert (await cache.stats()).entries == 1
    await cache.close()


async def test_the_oldest_go_first_and_what_never_fits_displaces_only_itself(path: Path) -> None:
    cache = SqliteCache(path, 3 * 300, 60)
    for key in (b"a", b"b", b"c"):
        await cache.put(key, bytes(44))
    await cache.put(b"a", bytes(44))
    await cache.put(b"d", bytes(44))
    assert [await cache.get(k) is not None for k in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]
    await cache.put(b"e", bytes(1000))
    await cache.put(b"d", bytes(1000))
    assert [await cache.get(k) is not None for k in (b"a", b"c", b"d", b"e")] == [1, 1, 0, 0]
    await cache.close()
    cache = SqliteCache(path, 300, 60)
    assert (await cache.stats()).entries == 1
    assert await cache.get(b"a") == bytes(44)
    await cache.close()


@settings(deadline=None, max_examples=20)
@given(puts=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1500)), max_size=30))
async def test_counts_its_bytes_and_never_holds_more(
    tmp_path_factory: pytest.TempPathFactory, puts: list
) -> None:
    cache = SqliteCache(tmp_path_factory.mktemp("db") / "cache.db", 2000, 60)
    for key, length in puts:
        await cache.put(bytes([key]), bytes(length))
        kept = [await cache.get(bytes([k])) for k in range(10)]
        stats = await cache.stats()
        assert stats.bytes == sum(len(v) + 256 for v in kept if v is not None) <= 2000
    await cache.close()


def size(path: Path) -> int:
    return path.stat().st_size


async def test_clear_gives_the_space_back(path: Path) -> None:
    cache = SqliteCache(path, 10**8, 60)
    for n in range(100):
        await cache.put(bytes([n]), bytes(50_000))
    assert await cache.clear() == 100
    stats = await cache.stats()
    assert (stats.entries, stats.bytes) == (0, 0)
    await cache.close()
    assert size(path) < 100_000


def test_files_of_others_are_refused_and_left_as_they_are(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but longer than a header" * 40)
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE entries (mine)")
    connection.close()
    later = tmp_path / "later.db"
    with sqlite3.connect(later) as connection:
        connection.execute("CREATE TABLE entries (key)")
        connection.execute(f"PRAGMA application_id = {0x50544143}")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for file, says in ((text, "not a database"), (foreign, "something else"), (later, "format 2")):
        with pytest.raises(CacheError, match=says):
            SqliteCache(file, 10**6, 60)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing" / "cache.db"):
        with pytest.raises(CacheError, match="cannot be opened"):
            SqliteCache(place, 10**6, 60)


def damage(path: Path) -> None:
    """Overwrite all but the first pages, in the same file."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * (size - 8192))


async def test_damage_is_a_miss_and_one_line(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = SqliteCache(path, 10**8, 60)
    for n in range(300):
        await cache.put(n.to_bytes(2, "big"), bytes(20_000))
    await cache.close()
    cache = SqliteCache(path, 10**8, 60)
    damage(path)
    found = [await cache.get(n.to_bytes(2, "big")) for n in range(300)]
    await cache.put(b"k", b"v")
    assert set(found) <= {None, bytes(20_000)}  # the latter from pages read before
    assert (await cache.stats()).failures >= found.count(None) >= 100
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    await cache.close()


async def test_damage_is_told_at_the_next_start(path: Path) -> None:
    cache = SqliteCache(path, 10**8, 60)
    for n in range(300):
        await cache.put(n.to_bytes(2, "big"), bytes(20_000))
    await cache.close()
    damage(path)
    with pytest.raises(CacheError, match="malformed"):
        SqliteCache(path, 10**8, 60)


async def test_a_locked_file_is_a_miss_until_it_is_free(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = SqliteCache(path, 10**6, 60)
    await cache.put(b"k", b"v")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    await cache.put(b"k", b"other")
    assert await cache.get(b"k") == b"v"  # readers do not wait for writers
    other.execute("ROLLBACK")
    other.close()
    await cache.put(b"k", b"new")
    assert await cache.get(b"k") == b"new"
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    await cache.close()


async def test_processes_may_share_a_file(path: Path) -> None:
    caches = await asyncio.gather(
        *(asyncio.to_thread(SqliteCache, path, 10**6, 60.0) for _ in range(4))
    )
    for n, cache in enumerate(caches):
        await cache.put(bytes([n]), bytes([n]))
    for cache in caches:
        assert [await cache.get(bytes([n])) for n in range(4)] == [bytes([n]) for n in range(4)]
        await cache.close()


_WRITER = """
import asyncio, sys
from pathlib import Path
from cache.sqlite import SqliteCache

async def write():
    cache = SqliteCache(Path(sys.argv[1]), 10**6, 60)
    n = 0
    while True:
        await cache.put(n.to_bytes(4, "big"), n.to_bytes(4, "big") * 500)
        n += 1
        print(n, flush=True)

asyncio.run(write())
"""


def write_until_killed(path: Path, count: int) -> int:
    """Let another process write so many entries, kill it, give how many it had finished."""
    command = [sys.executable, "-c", _WRITER, path]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        done = [int(writer.stdout.readline()) for _ in range(count)][-1]
        writer.send_signal(signal.SIGKILL)
    return done


async def test_a_crash_loses_nothing_that_was_put_and_breaks_nothing(path: Path) -> None:
    done = write_until_killed(path, 150)
    cache = SqliteCache(path, 10**6, 60)
    for n in range(done):
        assert await cache.get(n.to_bytes(4, "big")) == n.to_bytes(4, "big") * 500
    await cache.put(b"k", b"v")
    assert await cache.get(b"k") == b"v"
    await cache.close()
