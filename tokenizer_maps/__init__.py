"""Token maps: how the tokens of one vocabulary lie in another's, and offsets across the two."""

from tokenizer_maps.bridge import (
    Bridge,
    Clamp,
    Context,
    ExactBridge,
    FastBridge,
    Head,
    IdentityBridge,
    Masses,
    Offsets,
    Plan,
    Reading,
    Sets,
    Tree,
    WordBridge,
    make_bridge,
)
from tokenizer_maps.errors import MapError, TokenizerMapError, VocabularyError
from tokenizer_maps.loading import load_vocabulary
from tokenizer_maps.map import TokenMap, open_map
from tokenizer_maps.vocabulary import Kind, Vocabulary

__all__ = [
    "Bridge",
    "Clamp",
    "Context",
    "ExactBridge",
    "FastBridge",
    "Head",
    "IdentityBridge",
    "Kind",
    "MapError",
    "Masses",
    "Offsets",
    "Plan",
    "Reading",
    "Sets",
    "TokenMap",
    "TokenizerMapError",
    "Tree",
    "Vocabulary",
    "VocabularyError",
    "WordBridge",
    "load_vocabulary",
    "make_bridge",
    "open_map",
]
