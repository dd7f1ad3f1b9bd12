"""Evidence: what RealTimeQA's articles say, as a corpus to tune on, and the questions it is for.

python -m adapter.evaluation.evidence FILE corpus.jsonl questions.jsonl
"""

import argparse
import json
import sys
from pathlib import Path

from adapter.errors import SettingsError
from adapter.evaluation.readers.realtimeqa import plain
from adapter.evaluation.readers.records import lines


def write_evidence(source: Path, corpus: Path, questions: Path) -> int:
    """Writes each question's evidence as a text of its own, and the lines of those that have some.

    Returns how many. Raises SettingsError for a file that cannot be read or has no evidence.
    """
    texts = [(plain(str(line.content.get("evidence") or "")), line) for line in lines(source)]
    kept = [(text, line) for text, line in texts if text]
    if not kept:
        raise SettingsError(f"{source} has no evidence")
    for path, objects in (
        (corpus, [{"text": text} for text, _ in kept]),
        (questions, [line.content for _, line in kept]),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in objects), "utf-8")
    return len(kept)


def main() -> None:
    """The command: exit code 0 done, 1 failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m adapter.evaluation.evidence")
    for name in ("file", "corpus", "questions"):
        parser.add_argument(name, type=Path)
    try:
        write_evidence(*vars(parser.parse_args()).values())
    except SettingsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
