"""Evaluation: one suite of tasks, asked of a hosted model alone, adapted, and of the pair."""
