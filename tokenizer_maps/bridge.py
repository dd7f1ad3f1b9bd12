"""Offsets of upstream tokens from a pair with another tokenizer, in pure steps.

``plan`` lays out what the pair reads, ``sets`` which probabilities it sums, ``offsets`` what the
sums mean. Between the steps the pair evaluates its models; no model, device or file is known here.
Where the first sums are too coarse, ``deeper`` lays out a second pass.
"""

import logging
from pathlib import Path
from typing import Literal

from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.exact import ALWAYS, ExactBridge
from tokenizer_maps.fast import FastBridge
from tokenizer_maps.identity import IdentityBridge
from tokenizer_maps.map import TokenMap, open_map
from tokenizer_maps.steps import (
    Bridge,
    Clamp,
    Context,
    Head,
    Inner,
    Masses,
    Offsets,
    Open,
    Plan,
    Reading,
    Role,
    Sets,
    Tree,
)
from tokenizer_maps.vocabulary import Vocabulary
from tokenizer_maps.words import WordBridge

__all__ = [
    "Bridge",
    "Clamp",
    "Context",
    "ExactBridge",
    "FastBridge",
    "Head",
    "IdentityBridge",
    "Inner",
    "Masses",
    "Offsets",
    "Open",
    "Plan",
    "Reading",
    "Role",
    "Sets",
    "Tree",
    "WordBridge",
    "make_bridge",
]

log = logging.getLogger(__name__)


def make_bridge(
    mode: Literal["auto", "identity", "fast", "exact"],
    upstream: Vocabulary,
    pair: Vocabulary,
    pair_end: frozenset[int],
    maps: Path,
    clamp: Clamp,
) -> Bridge:
    """The bridge for two vocabularies.

    ``auto`` is identity where their fingerprints are equal, else fast, and exact at places where
    fast sees too much of the upstream's choice only coarsely. ``maps`` is the directory of map
    files. Logs a warning where the pair's vocabulary lacks the characters of some scripts. Raises
    VocabularyError for ``identity`` on different tokenizers, MapError where a map cannot be
    written.
    """
    same = upstream.fingerprint == pair.fingerprint
    if mode == "identity" and not same:
        raise VocabularyError("the identity bridge needs one tokenizer on both sides: use fast")
    if same and mode in ("auto", "identity"):
        return IdentityBridge(pair)
    token_map = open_map(maps, upstream, pair)
    _warn_of_scripts(token_map)
    if mode == "fast":
        return FastBridge(token_map, pair_end, clamp)
    if mode == "exact":
        return ExactBridge(token_map, pair_end, clamp, above=ALWAYS)
    return ExactBridge(token_map, pair_end, clamp)


def _warn_of_scripts(token_map: TokenMap) -> None:
    """What no bridge mends: a pair that spells the characters of a script byte by byte."""
    if token_map.torn:
        shares = (f"{name} ({part / n:.0%})" for name, (part, n) in token_map.torn.items())
        log.warning(
            "most of the upstream's tokens of these scripts are pieces of characters to the pair: "
            "%s. Where it was measured, steering such text did more harm than good, with every "
            "bridge: choose a pair whose vocabulary has these characters",
            ", ".join(shares),
        )
