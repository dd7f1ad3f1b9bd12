"""Run one bench: ``python -m tests.bench NAME [--json]``."""

import argparse
import json
import os
import sys
from importlib import import_module
from pathlib import Path

# Before torch is imported: spinning threads make a contended machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

NAMES = sorted(
    file.stem for file in Path(__file__).parent.glob("*.py") if "\ndef run(" in file.read_text()
)


def main(argv: list[str]) -> None:
    """Each bench is a module with ``options(parser)``, ``run(args)`` and ``report(result)``."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="one object, for machines")
    module = import_module(f"tests.bench.{parser.parse_args(argv[:1]).name}")
    module.options(parser)
    args = parser.parse_args(argv)
    result = module.run(args)
    sys.stdout.write((json.dumps(result) if args.json else module.report(result)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:] or ["--help"])
