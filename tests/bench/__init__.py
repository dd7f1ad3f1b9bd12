"""Measurements side by side: ``python -m tests.bench NAME [--json]``; tables in BENCH.md."""
