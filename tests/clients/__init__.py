"""Other people's clients and suites against a running service: ``python -m tests.clients``."""
