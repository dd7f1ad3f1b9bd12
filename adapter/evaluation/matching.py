"""Matching: whether a generated answer says what is accepted."""

import re
import string
from collections.abc import Sequence
from fractions import Fraction

from adapter.errors import SettingsError

MATCHES = ("exact", "normalised", "number")

_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”´")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NUMBER = re.compile(r"(?:(?<![\w.,)])-)?\$?((?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")


def right(match: str, answer: str, accepted: Sequence[str]) -> bool:
    """Whether the answer is one of those accepted.

    `exact`: the same but for white space around; `normalised`: the same after `normalised`;
    `number`: the last numbers of both are equal, so that a whole solution can be accepted. Raises
    SettingsError for another match, and where a number is asked for and none is accepted.
    """
    if match == "exact":
        return answer.strip() in {one.strip() for one in accepted}
    if match == "normalised":
        return normalised(answer) in {normalised(one) for one in accepted}
    if match == "number":
        return last_number(answer) in _numbers(accepted)
    raise SettingsError(f"there is no match '{match}'; known: {', '.join(MATCHES)}")


def normalised(text: str) -> str:
    """Lower case without punctuation, articles and doubled spaces, as SQuAD's own script has it.

    Curly quotes count as punctuation too.
    """
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", plain).split())


def last_number(text: str) -> Fraction | None:
    """The last number in digits: $ and commas between thousands do not count, nor a full stop."""
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    found = numbers[-1]
    value = Fraction(found[1].replace(",", ""))
    return -value if found[0].startswith("-") else value


def _numbers(accepted: Sequence[str]) -> set[Fraction]:
    numbers = {number for one in accepted if (number := last_number(one)) is not None}
    if not numbers:
        raise SettingsError(
            "match: number, but an accepted answer has no number in digits; use normalised or exact"
        )
    return numbers
