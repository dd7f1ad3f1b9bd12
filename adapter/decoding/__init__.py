"""Decoding: the loop from drafts and offsets to emitted steps."""

from adapter.decoding.choose import Labels, choose
from adapter.decoding.decode import decode
from adapter.decoding.frozen import Frozen
from adapter.decoding.generation import Generation, Influence
from adapter.decoding.given import given
from adapter.decoding.pace import Pace, Stride

__all__ = [
    "Frozen",
    "Generation",
    "Influence",
    "Labels",
    "Pace",
    "Stride",
    "choose",
    "decode",
    "given",
]
