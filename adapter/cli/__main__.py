"""`python -m adapter.cli` is the `adapter` command."""

from adapter.cli import main

main()
