"""python -m tests.reliability [--twentieth] [ID ...]: measures promises, writes RELIABILITY.md.

Without ids it measures all of them, with ids only their rows are written anew.
"""

import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.reliability.promises import PROMISES

TABLE = Path(__file__).parent.parent / "RELIABILITY.md"
HEAD = """# Reliability, measured

Made by `python -m tests.reliability`: the tests that carry each id, at full counts, against a real
Redis and upstreams on real sockets. `make test` runs the same tests with a twentieth of the counts
or less. `held` means that the tests passed and the goal was met; times are those of a busy machine
of two cores, and a goal in time that was missed says so. E8 is judged by the processor time of the
loop's own thread, which other programs do not lengthen; D6 tells beside each time how late a bare
timer was. A1's canary, and how to run it: `tests/cache/canary.py`.

| id | promise | goal | run, and what was seen | result | s | tests |
| --- | --- | --- | --- | --- | --: | --- |
"""


@dataclass
class Row:
    """What the tests of one promise have shown; `left` are those that did not end yet."""

    left: set[str] = field(default_factory=set)
    tests: dict[str, None] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, None] = field(default_factory=dict)
    missed: bool = False

    def add(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if report.when == "call" or not report.passed:
            self.outcomes[report.outcome] += 1
        if isinstance(report.longrepr, tuple):
            self.reasons[report.longrepr[2].removeprefix("Skipped: ")] = None
        if report.when != "call" and report.outcome != "skipped":
            return
        path, _, name = report.nodeid.partition("::")
        self.tests[f"`{Path(path).name}::{name.partition('[')[0]}`"] = None
        for key, (run, seen, met) in report.user_properties:
            if key == "measured":
                self.seen[f"{run}: {seen}" if seen else run] += 1
                self.missed |= not met

    @property
    def result(self) -> str:
        counts = "" if counts_are_full() else ", at a twentieth of the counts"
        if self.outcomes["failed"]:
            return f"**failed** ({self.outcomes['failed']} of {self.outcomes.total()})"
        if self.left or not self.outcomes:
            return f"**not run** ({len(self.left)} tests left)"
        shown = ("**missed**" if self.missed else "held") + counts
        if self.outcomes["skipped"]:
            shown += f", **{self.outcomes['skipped']} of {self.outcomes.total()} tests skipped**"
            shown += f" ({'; '.join(self.reasons)})"
        return shown

    def line(self, name: str) -> str:
        promise = PROMISES[name]
        seen = [text + f" (× {times})" * (times > 1) for text, times in self.seen.items()]
        told = "; ".join(seen) or f"{(n := self.outcomes.total())} test{'s' * (n > 1)}"
        tests = ", ".join(self.tests)
        cells = (name, promise.says, promise.goal, told, self.result, f"{self.seconds:.0f}", tests)
        return "| " + " | ".join(cells) + " |"


def counts_are_full() -> bool:
    return os.environ["FULL"] == "1"


class Collector:
    """A pytest plugin: runs the tests of some promises and keeps what they tell."""

    def __init__(self, wanted: set[str]) -> None:
        self.rows = {name: Row() for name in PROMISES if name in wanted}
        self._ids: dict[str, list[str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            marks = item.iter_markers("reliability")
            self._ids[item.nodeid] = [name for mark in marks for name in mark.args]
        items[:] = [item for item in items if self.rows.keys() & set(self._ids[item.nodeid])]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Here, because -m has had its say by now."""
        for item in session.items:
            for name in self.rows.keys() & set(self._ids[item.nodeid]):
                self.rows[name].left.add(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name in self._ids[report.nodeid]:
            if name in self.rows:
                self.rows[name].add(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Each row is written as soon as its last test has ended."""
        for name in self.rows.keys() & set(self._ids[nodeid]):
            row = self.rows[name]
            row.left.discard(nodeid)
            if not row.left:
                write({name: row.line(name)})

    def pytest_sessionfinish(self) -> None:
        """Here and not later: what failing tests leave behind may end pytest with an error."""
        write({name: row.line(name) for name, row in self.rows.items()})


def write(lines: dict[str, str]) -> None:
    """Put these rows into the table, beside those that are there."""
    lines = known_lines() | lines
    table = "\n".join(lines[name] for name in PROMISES if name in lines)
    TABLE.write_text(HEAD + table + "\n", "utf-8")


def known_lines() -> dict[str, str]:
    """The rows of the table as it is."""
    text = TABLE.read_text("utf-8") if TABLE.exists() else ""
    return {row[1]: row[0] for row in re.finditer(r"^\| ([A-Z]\d+) \|.*$", text, re.MULTILINE)}


def main() -> int:
    wanted = set(sys.argv[1:]) - {"--twentieth"} or set(PROMISES)
    if unknown := wanted - PROMISES.keys():
        print(f"no promise is called {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    twentieth = "--twentieth" in sys.argv
    os.environ["FULL"] = "0" if twentieth else "1"
    fewer = ["-m", "not full"] if twentieth else []
    return int(pytest.main(["-q", "tests", *fewer], plugins=[Collector(wanted)]))


if __name__ == "__main__":
    sys.exit(main())
