"""Choosing among labels, against the whole vocabulary in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest

from adapter.budget import Budget
from adapter.decoding import Frozen, choose
from adapter.errors import BadRequest, BudgetExceeded, UpstreamMalformed
from tests.support.generations import generation, lexicon
from tests.support.synthetic import Synthetic, vocabulary_of_words
from tests.support.synthetic_pair import SyntheticReader

PROMPT = (3, 5, 4)
LETTERS = ("A", "B", "C", "D")
WORDS = ("york", "new york", "newb", "baba")
VOCABULARY = vocabulary_of_words(
    b"A", b" A", b"B", b" B", b"C", b"D", b" D", b" ", b"n", b"new", b" new", b"york", b" york",
    b"b", b"a", b"ba", b"\xc3",
)  # fmt: skip
SIZE = len(VOCABULARY.tokens)


def paths(label):
    """The spellings of a label, single tokens where there are any; plain and slow."""
    spelt = [label.encode(), b" " + label.encode()]
    alone = [(VOCABULARY.tokens.index(s),) for s in spelt if s in VOCABULARY.tokens]
    return alone or [VOCABULARY.encode(s) for s in spelt]


def labels_of(labels):
    names = lexicon(VOCABULARY)
    return {label: [names.of_ids(path) for path in paths(label)] for label in labels}


class Oracle:
    """Equation 1 over every token, one at a time, with nothing hidden."""

    def __init__(self, upstream, reader, alpha):
        self.upstream, self.reader, self.alpha = upstream, reader, alpha

    def row(self, generated):
        scores = self.upstream.logprobs((*PROMPT, *generated)).copy()
        scores += self.alpha * self.reader.delta(generated) if self.alpha else 0.0
        return scores - math.log(sum(math.exp(s) for s in scores))

    def mass(self, label):
        return sum(
            math.exp(sum(self.row(path[:j])[path[j]] for j in range(len(path))))
            for path in paths(label)
        )

    def shares(self, labels):
        masses = [self.mass(label) for label in labels]
        return [math.log(mass / sum(masses)) for mass in masses]


async def ask(labels, *, alpha=1.0, calls=99, seed=0, **upstream):
    """The ending, the upstream and the oracle of a choice."""
    hosted = Synthetic(VOCABULARY, seed=seed, **upstream)
    reader = SyntheticReader(PROMPT, SIZE, strength=2.0)
    one = generation(
        PROMPT, vocabulary=VOCABULARY, reader=reader if alpha else None, alpha=alpha,
        sampling=replace(generation().sampling, max_tokens=4),
    )  # fmt: skip
    budget = Budget(calls)
    return (
        await choose(Frozen(hosted), one, labels_of(labels), budget),
        hosted,
        Oracle(hosted, reader, alpha),
    )


def check_shares(ending, oracle, labels, tolerance=1e-9):
    told = ending.verdict.labels
    assert [label.text for label in told] == list(labels)
    assert [label.logprob for label in told] == pytest.approx(oracle.shares(labels), abs=tolerance)
    best = max(range(len(labels)), key=lambda i: oracle.shares(labels)[i])
    assert (ending.text, ending.finish_reason) == (labels[best], "stop")


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(5))
async def test_letters_take_one_call(alpha, seed):
    ending, hosted, oracle = await ask(LETTERS, alpha=alpha, seed=seed)
    check_shares(ending, oracle, LETTERS)
    assert (ending.usage.calls, hosted.calls) == (1, 1)
    assert not ending.verdict.uncertain
    told = ending.verdict.labels
    assert all(label.shown for label in told)
    scores = [label.upstream_logprob + alpha * label.offset for label in told]
    norm = np.logaddexp.reduce(scores)
    assert [label.logprob for label in told] == pytest.approx(scores - norm, abs=1e-9)


async def test_both_spellings_of_a_label_add_up():
    ending, _, oracle = await ask(("A", "C"), alpha=1.0)
    a, c = ending.verdict.labels
    row = oracle.row(())
    one, two, other = (VOCABULARY.tokens.index(s) for s in (b"A", b" A", b"C"))
    assert a.logprob - c.logprob == pytest.approx(np.logaddexp(row[one], row[two]) - row[other])
    upstream = oracle.upstream.logprobs(PROMPT)
    assert a.upstream_logprob == pytest.approx(np.logaddexp(upstream[one], upstream[two]))


@pytest.mark.parametrize("seed", range(8))
async def test_labels_that_are_not_shown_are_scored_where_they_can_be(seed):
    ending, hosted, oracle = await ask(LETTERS, alpha=2.0, seed=seed, k=3)
    top = shown_ids(oracle, 3)
    missing = [label for label in LETTERS if not any(p[0] in top for p in paths(label))]
    assert missing
    assert hosted.calls == ending.usage.calls == 2
    assert all(label.shown for label in ending.verdict.labels)
    assert not ending.verdict.uncertain
    # Of a label that was shown its other spelling may be missing.
    row = oracle.row(())
    counted = {
        label: [p[0] for p in paths(label) if label in missing or p[0] in top] for label in LETTERS
    }
    masses = [sum(math.exp(row[i]) for i in counted[label]) for label in LETTERS]
    expected = [math.log(mass / sum(masses)) for mass in masses]
    assert [one.logprob for one in ending.verdict.labels] == pytest.approx(expected, abs=1e-9)


async def test_what_cannot_be_scored_is_bounded_and_may_leave_the_answer_uncertain():
    seen = set()
    for seed in range(40):
        try:
            ending, hosted, oracle = await ask(LETTERS, alpha=2.0, seed=seed, k=4, scoring=None)
        except BadRequest:
            seen.add("none")
            continue
        assert hosted.calls == ending.usage.calls == 1
        verdict = ending.verdict
        total = sum(math.exp(oracle.row(())[i]) for i in shown_ids(oracle, 4))
        for label in verdict.labels:
            if not label.shown:
                share = oracle.mass(label.text) / (oracle.mass(label.text) + total)
                assert label.logprob >= math.log(share) - 1e-6
        shown = [label.text for label in verdict.labels if label.shown]
        if not verdict.uncertain and all(len(paths(text)) == 1 for text in shown):
            assert ending.text == max(LETTERS, key=oracle.mass)
        seen.add(verdict.uncertain)
    assert seen == {True, False, "none"}


def shown_ids(oracle, k):
    """The ids among the top k that spell a label."""
    order = np.argsort(-oracle.upstream.logprobs(PROMPT), kind="stable")[:k].tolist()
    return [i for i in order if any((i,) in paths(label) for label in LETTERS)]


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("text_scoring", ["echo", "forced"])
@pytest.mark.parametrize("seed", range(3))
async def test_labels_of_several_tokens(alpha, text_scoring, seed):
    ending, hosted, oracle = await ask(WORDS, alpha=alpha, seed=seed, text_scoring=text_scoring)
    check_shares(ending, oracle, WORDS)
    assert hosted.calls == ending.usage.calls
    longer = [path for label in WORDS for path in paths(label) if len(path) > 1]
    stops = {path[:j] for path in longer for j in range(1, len(path))}
    assert ending.usage.calls == 1 + (len(longer) if text_scoring == "echo" else len(stops))


async def test_a_cap_on_calls_holds_for_labels_of_several_tokens():
    with pytest.raises(BudgetExceeded):
        await ask(WORDS, calls=2)


async def test_scoring_stops_where_no_call_is_left():
    ending, hosted, _ = await ask(LETTERS, alpha=2.0, seed=1, k=3, calls=1)
    assert hosted.calls == ending.usage.calls == 1
    assert not all(label.shown for label in ending.verdict.labels)


class Ended(Synthetic):
    """Ends every text at once, and hides how."""

    async def draft(self, prefix, n, budget, sampled=False):
        draft = await super().draft(prefix, n, budget, sampled)
        return replace(draft, positions=(), finish_reason="stop")


async def test_an_upstream_that_ends_the_text_has_nothing_to_choose_by():
    one = generation(PROMPT, vocabulary=VOCABULARY)
    with pytest.raises(UpstreamMalformed, match="ends the text"):
        await choose(Frozen(Ended(VOCABULARY)), one, labels_of(LETTERS), Budget(9))
