"""Decoding: the loop from drafts and offsets to emitted steps."""

from adapter.decoding.decode import decode
from adapter.decoding.frozen import Frozen
from adapter.decoding.generation import Generation, Influence
from adapter.decoding.pace import Pace, Stride

__all__ = ["Frozen", "Generation", "Influence", "Pace", "Stride", "decode"]
