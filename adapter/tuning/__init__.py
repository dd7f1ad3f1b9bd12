"""Tuning: from a base model and a corpus to the directory of an expert."""
