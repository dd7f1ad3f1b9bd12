"""What the Python client gives: answers, scores and choices, wherever the service runs."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapter.candidates import Label, Step, Usage

if TYPE_CHECKING:  # loaded when used
    from adapter.explanation import Explanation


@dataclass(frozen=True, slots=True)
class AnswerUsage:
    """Tokens of the adapted answer, and what it took of the upstream to make it.

    `cost` is in the currency of the configured prices, None without any; `estimated` where the
    upstream did not say what it billed for every part.
    """

    prompt_tokens: int
    completion_tokens: int
    upstream: Usage
    cost: float | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `steps` is empty where no trace was asked.

    `flags` speak of the answer as a whole: `end_unsteered` where the upstream hid its END.
    `finish` is `budget` where a cap on calls or money ended it.
    """

    text: str
    steps: tuple[Step, ...]
    usage: AnswerUsage
    finish_reason: str
    flags: frozenset[str] = frozenset()
    finish: str | None = None

    def explain(self) -> "Explanation":
        """What steering changed, to be printed; it needs the steps of a trace."""
        from adapter.explanation import Explanation

        return Explanation(self.text, self.steps)


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a text is as adapted: a Step for each token but the first, which nothing precedes.

    Of a step of status `truncated` hidden tokens may have moved the log-probability; its `bounds`
    tell how far.
    """

    text: str
    steps: tuple[Step, ...]
    usage: AnswerUsage

    @property
    def logprob(self) -> float:
        """The adapted log-probability of all tokens behind the first, in nats."""
        return math.fsum(step.logprob for step in self.steps)

    @property
    def upstream_logprob(self) -> float:
        """The same as the upstream alone has it."""
        return math.fsum(step.upstream_logprob for step in self.steps)


@dataclass(frozen=True, slots=True)
class Choice:
    """The likeliest label, and the score of each; `uncertain`: one not shown may be likelier."""

    text: str
    labels: tuple[Label, ...]
    uncertain: bool
    usage: AnswerUsage
