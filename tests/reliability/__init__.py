"""What must hold whatever fails: `python -m tests.reliability` measures it all."""
