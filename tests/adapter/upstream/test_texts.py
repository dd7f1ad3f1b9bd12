"""Prefixes of text: the same steps whatever the draft, the cache or the crowd, to the last bit."""

from collections import Counter
from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest

from adapter.budget import Budget
from adapter.candidates import Candidate, Position, Step
from adapter.decoding import Frozen, decode
from adapter.errors import BadRequest, UpstreamCannotContinue
from adapter.prefix import Prefix, Special, pending
from adapter.request import Chat, Message, Sampling
from adapter.upstream import texts
from adapter.upstream.cached import CachedUpstream
from adapter.upstream.lexicon import Lexicon
from adapter.upstream.once import OnceUpstream
from adapter.upstream.spelling import Spelling, opening
from adapter.upstream.texts import TextUpstream
from cache import MemoryCache
from tests.support.crowd import crowd
from tests.support.forgetful import Forgetful
from tests.support.generations import generation, run
from tests.support.synthetic_pair import SyntheticReader
from tests.support.synthetic_text import VOCABULARY, Broken, SyntheticSpeaker

SIZE = len(VOCABULARY.tokens)
LOOKAHEADS = (2, 3, 8, 16, "auto", "stream")
TOKENS = 12
SAMPLINGS = {
    "greedy": Sampling(max_tokens=TOKENS, temperature=0.0),
    "seeded": Sampling(max_tokens=TOKENS, temperature=1.0, seed=3),
    "cold": Sampling(max_tokens=TOKENS, temperature=0.7, top_p=0.9, seed=4),
}
LEXICON = Lexicon(VOCABULARY, Spelling(VOCABULARY))


def speaker(**changes):
    fields = {"k": 8, "seed": 1, "sharpness": 1.5, "end_logit": -1.0} | changes
    return SyntheticSpeaker(Broken(VOCABULARY, **fields))


def upstream(**changes):
    return TextUpstream(speaker(**changes), VOCABULARY)


def prompts(count):
    """The language model sees three tokens back, and no two prompts end alike."""
    letters = "hbdeagcf"
    return ["東 " + letters[i % 8] + letters[i // 8 % 8] + letters[i // 64] for i in range(count)]


async def answer(inner, prompt, sampling, lookahead, **changes):
    """Every step and the ending, without what may differ: where positions came from, and cost."""
    reader = SyntheticReader(VOCABULARY.encode(prompt.encode()), SIZE, strength=0.3)
    fields = {"alpha": 1.0, "seed": sampling.seed or 0, "shown": 3} | changes
    one = generation(
        prompt, lexicon=LEXICON, sampling=sampling, reader=reader, lookahead=lookahead, **fields
    )
    steps, ending = await run(inner, one)
    return [replace(step, source="") for step in steps], replace(ending, usage=None)


async def flags_where_equal(cases):
    """What the steps say of themselves; each answer must be its twin's, drafted one by one."""
    flags = Counter()
    for prompt, sampling, lookahead in cases:
        expected = await answer(upstream(), prompt, sampling, 1)
        assert await answer(upstream(), prompt, sampling, lookahead) == expected, (
            prompt,
            sampling,
            lookahead,
        )
        flags.update(flag for step in expected[0] for flag in step.flags)
        flags["steps"] += len(expected[0])
        flags["inside"] += sum(not whole(step.token) for step in expected[0])
    return flags


def whole(token):
    try:
        return bool(token.decode()) or True
    except UnicodeDecodeError:
        return False


async def test_90_prompts_whatever_the_draft_and_the_draw():
    """Each way five times; 250 times each with FULL=1."""
    ways = cycle((s, n) for s in SAMPLINGS.values() for n in LOOKAHEADS)
    flags = await flags_where_equal([(prompt, *next(ways)) for prompt in prompts(90)])
    assert flags["steps"] > 700
    assert flags["retokenised"] > 100
    assert flags["inside"] > 100
    assert flags["masked"] > 350


@pytest.mark.full
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
async def test_250_prompts_of_every_kind(sampling, lookahead):
    flags = await flags_where_equal([(p, sampling, lookahead) for p in prompts(250)])
    assert flags["steps"] > 1500


@pytest.mark.parametrize("lookahead", [1, 3, 8, "auto", "stream"])
async def test_16_at_once_with_one_cache(lookahead):
    asked = [prompts(6)[i % 6] for i in range(24)]
    for sampling in (SAMPLINGS["greedy"], SAMPLINGS["seeded"]):
        expected = [await answer(upstream(), prompt, sampling, 1) for prompt in prompts(6)]
        shared = CachedUpstream(upstream(latency=1e-4), MemoryCache(10**7, 60.0))

        async def one(prompt, sampling=sampling, shared=shared):
            return await answer(shared, prompt, sampling, lookahead)

        assert await crowd(one, asked) == [expected[i % 6] for i in range(24)]


@pytest.mark.parametrize("lost", ["none", "half", "all"])
async def test_a_cache_that_is_cold_warm_or_lost_half_way(lost):
    for sampling in SAMPLINGS.values():
        for prompt in prompts(4):
            expected = await answer(upstream(), prompt, sampling, 1)
            shared = CachedUpstream(upstream(), Forgetful(lost))
            for lookahead in (16, 1, 3, "stream", "auto"):
                assert await answer(shared, prompt, sampling, lookahead) == expected


async def test_choices_of_one_request_share_what_was_shown():
    for prompt in prompts(8):
        alone = [await answer(upstream(), prompt, SAMPLINGS["seeded"], 1, choice=c) for c in (0, 1)]
        frozen = Frozen(upstream())
        shared = [await answer(frozen, prompt, SAMPLINGS["seeded"], 8, choice=c) for c in (0, 1)]
        assert shared == alone


CASES = [(prompt, SAMPLINGS["greedy"], 8) for prompt in prompts(40)]


async def test_canary_a_draft_that_is_not_cut_where_the_text_has_other_tokens(monkeypatch):
    await flags_where_equal(CASES)
    monkeypatch.setattr(Spelling, "knows", False)
    with pytest.raises(AssertionError):
        await flags_where_equal(CASES)


async def test_canary_a_draft_that_is_not_asked_to_the_end_of_a_character(monkeypatch):
    """Then what may come out where a character begins depends on how far the draft goes."""
    made = texts._TextRun.__init__

    def short(self, spelling, prefix, n):
        made(self, spelling, prefix, n)
        self.asked = n + len(prefix.open)

    monkeypatch.setattr(texts._TextRun, "__init__", short)
    with pytest.raises(AssertionError):
        await flags_where_equal(CASES)


@pytest.mark.reliability("D8")
async def test_nothing_but_whole_characters_is_sent_and_no_special_token(measured):
    one, halves = speaker(end_logit=-9.0), 0
    for prompt in prompts(40):
        before = len(one.asked)
        steps, _ = await answer(TextUpstream(one, VOCABULARY), prompt, SAMPLINGS["seeded"], 8)
        halves += sum(not whole(step.token) for step in steps)
        text = prompt.encode() + b"".join(step.token for step in steps)
        assert all(text.startswith(sent.encode()) for sent, _ in one.asked[before:])
    assert len(one.asked) > 100
    assert halves > 30
    assert not any("<|end|>" in sent for sent, _ in one.asked)
    assert min(n for _, n in one.asked) >= 4
    run = f"{len(one.asked)} texts sent upstream, {halves} tokens with half a character"
    measured(run, "whole characters only")


async def test_a_name_of_a_special_token_is_not_completed():
    spelling = Spelling(VOCABULARY)
    ids = {token: i for i, token in enumerate(VOCABULARY.tokens)}
    prefix = Prefix.of("ab <|en")
    barred = spelling.barred(prefix, _position([]), np.arange(SIZE))
    assert barred[ids[b"d|>"]]
    assert not barred[ids[b"ab"]]
    assert not barred[0]  # END
    assert spelling.spells(b"<|en", b"d|>")
    with pytest.raises(BadRequest, match=r"<\|end\|>"):
        opening([b"a<|end|>"], VOCABULARY)
    assert opening([b"a", Special("<|end|>"), b"b"], VOCABULARY) == "a<|end|>b"
    assert opening([b"a<|end|>"], None) == "a<|end|>"


async def test_a_templates_own_special_token_bars_nothing_and_is_no_drift():
    spelling = Spelling(VOCABULARY)
    prefix = Prefix.of("ab<|end|>")
    assert not spelling.spells(b"ab<|end|>", b"ab")
    assert not spelling.barred(prefix, _position([]), np.arange(SIZE))[id_of(b"ab")]
    assert spelling.canonical(b"ab<|end|>", b"ab") == (id_of(b"ab"),)
    assert not spelling.drifted(prefix.extend(Candidate(b"ab", -1.0, id_of(b"ab"))))
    a = prefix.extend(Candidate(b"a", -1.0, id_of(b"a")))
    assert not spelling.drifted(a)
    assert spelling.drifted(a.extend(Candidate(b"b", -1.0, id_of(b"b"))))


async def test_what_may_come_out_inside_a_character_is_what_finishes_it():
    prefix = Prefix.of("ab").extend(Candidate(b"\xe6", -1.0, id_of(b"\xe6")))
    barred = Spelling(VOCABULARY).barred(prefix, _position([]), np.arange(SIZE))
    free = {VOCABULARY.tokens[i] for i in np.flatnonzero(~barred)}
    assert free == {b"\x9d\xb1", b"\x9a\xa2"}


class Twin:
    """The rules once more, slow and obvious: one token at a time, each text read anew."""

    def __init__(self, model, prompt):
        self.model, self.text, self.open = model, prompt.encode(), ()
        self.reader = SyntheticReader(VOCABULARY.encode(self.text), SIZE, strength=0.3)
        self.generated = ()

    def scores(self):
        row = self.model.logprobs((*VOCABULARY.encode(self.text), *self.open))
        return row + self.reader.delta(self.generated)

    def able(self):
        """The tokens that may come out."""
        begun = VOCABULARY.decode(self.open)
        found = {i for i in range(1, SIZE) if sendable(self.text, begun + VOCABULARY.tokens[i])}
        found |= set() if begun else {0}
        finished, at = self.finished(), len(self.open)
        return found | set(finished[at : at + 1] if finished[:at] == self.open else ())

    def finished(self):
        """The tokens in which the upstream itself finishes the next character; () if it cannot."""
        ids = ()
        while len(ids) < 4:
            best = int(self.model.logprobs((*VOCABULARY.encode(self.text), *ids)).argmax())
            if best == 0:
                return ()
            ids = (*ids, best)
            if sendable(self.text, VOCABULARY.decode(ids)):
                return ids
        return ()

    def take(self, token):
        self.generated, self.open = (*self.generated, token), (*self.open, token)
        begun = VOCABULARY.decode(self.open)
        if whole(begun):
            self.text, self.open = self.text + begun, ()


def sendable(text, token):
    return whole(token) and b"<|end|>" not in text + token


async def test_equation_1_over_all_that_can_be_sent():
    """Greedy, whole vocabulary, float64: at every text, read anew where it has drifted."""
    checked = Counter()
    for prompt in prompts(60):
        one = speaker(k=None)
        steps, _ = await answer(TextUpstream(one, VOCABULARY), prompt, SAMPLINGS["greedy"], 8)
        twin = Twin(one.model, prompt)
        for step in steps:
            scores, able = twin.scores(), twin.able()
            best = max(able, key=lambda i: (scores[i], -i))
            logprob = scores[best] - np.logaddexp.reduce(scores)
            assert step.token == VOCABULARY.tokens[best]
            assert step.logprob == pytest.approx(logprob, abs=1e-12)
            assert ("masked" in step.flags) == (len(able) < SIZE)
            drifted = VOCABULARY.encode(twin.text) != (
                *VOCABULARY.encode(prompt.encode()),
                *twin.generated[: len(twin.generated) - len(twin.open)],
            )
            kind = "retokenised" if drifted else "inside" if twin.open else "plain"
            assert ("retokenised" in step.flags) == drifted
            checked[kind] += 1
            twin.take(best)
    assert min(checked.values()) > 30
    assert len(checked) == 3


async def test_certified_steps_are_those_of_the_whole_vocabulary():
    certified = masked = 0
    for prompt in prompts(60):
        steps, _ = await answer(upstream(k=4), prompt, SAMPLINGS["greedy"], 8, alpha=0.3)
        full, _ = await answer(upstream(k=None), prompt, SAMPLINGS["greedy"], 8, alpha=0.3)
        for step, true in zip(steps, full, strict=False):
            if step.status == "certified":
                assert step.token == true.token
                certified += 1
            masked += "masked" in step.flags
            if step.token != true.token:
                break
    assert certified > 50
    assert masked > 50


# --- tokenizers that nobody knows


async def test_of_an_unknown_tokenizer_only_the_first_character_of_a_run_is_kept():
    draft = await TextUpstream(speaker(), None).draft(Prefix.of("ab"), 12, Budget(1))
    first = 1
    while pending(b"".join(p.drafted.token for p in draft.positions[:first])):
        first += 1
    assert draft.kept == first < len(draft.positions)
    cache = MemoryCache(10**7, 60.0)
    inner = TextUpstream(speaker(), None)
    one = CachedUpstream(inner, cache)
    await one.draft(Prefix.of("ab"), 12, Budget(1))
    again = await one.draft(Prefix.of("ab"), 12, Budget(0))
    assert (again.source, len(again.positions)) == ("cache", first)
    assert again.finish_reason is None


async def test_streamed_and_whole_runs_keep_the_same():
    for words in (VOCABULARY, None):
        for prompt in prompts(20):
            whole_run = await TextUpstream(speaker(), words).draft(Prefix.of(prompt), 9, Budget(1))
            pieces = [
                piece
                async for piece in TextUpstream(speaker(), words).stream(
                    Prefix.of(prompt), 9, Budget(1)
                )
            ]
            assert tuple(p for piece in pieces for p in piece.positions) == whole_run.positions
            kept = [len(p.positions) if p.kept is None else p.kept for p in pieces]
            everything = len(whole_run.positions)
            assert sum(kept) == (everything if whole_run.kept is None else whole_run.kept)


async def test_steps_behind_text_of_an_unknown_tokenizer_say_so():
    lexicon = Lexicon(None, Spelling(None))
    one = generation("ab", lexicon=lexicon, lookahead=8)
    steps, _ = await run(TextUpstream(speaker(), None), one)
    assert ["retokenised" in step.flags for step in steps] == [False, *[True] * (len(steps) - 1)]
    assert len(steps) > 1


# --- upstreams that cannot go on


async def test_an_upstream_that_cannot_go_on_is_exact_up_to_the_first_departure():
    departed = 0
    for prompt in prompts(40):
        one = SyntheticSpeaker(speaker().model, continues="none")
        full, _ = await answer(upstream(), prompt, SAMPLINGS["greedy"], 1)
        steps, error = await _collect(TextUpstream(one, VOCABULARY), prompt)
        if error is not None:
            departed += 1
            assert (error.status, error.code) == (400, "upstream_cannot_continue")
            assert "steering.choices" in error.message
            assert "max_tokens: 1" in error.message
        assert [s.token for s in steps] == [s.token for s in full[: len(steps)]]
        assert steps
        assert [text for text, _ in one.asked] == [prompt]
    assert departed > 20


@pytest.mark.parametrize(
    ("seed", "several", "calls"), [(None, False, 4), (None, True, 1), (3, False, 1)]
)
async def test_choices_that_draw_each_have_an_answer_of_their_own(seed, several, calls):
    """Following another's sample they would soon leave it, and nothing could be had there."""
    one = SyntheticSpeaker(speaker(k=None, several=several).model, continues="none")
    sampling = Sampling(max_tokens=8 if seed is None else 1, temperature=1.0, seed=seed)
    frozen, said = Frozen(OnceUpstream(one)), set()
    for choice in range(4):
        drawn = generation("hbd", lexicon=LEXICON, sampling=sampling, choice=choice, choices=4)
        steps, ending = await run(frozen, drawn)
        assert len(steps) == sampling.max_tokens or ending.finish_reason == "stop"
        said.add(tuple(step.token for step in steps))
    assert len(one.asked) == calls
    assert len(said) > 1


class Single(SyntheticSpeaker):
    """Draws one answer, however many are asked for; `wanted` is how many were."""

    async def draws(self, prompt, n, budget, choices):
        self.wanted = [*getattr(self, "wanted", []), choices]
        return (await super().draws(prompt, n, budget, 1))[:1]


async def test_where_one_answer_comes_for_several_it_is_not_tried_again():
    one = Single(speaker(k=None, several=True).model, continues="none")
    frozen, sampling = Frozen(OnceUpstream(one)), Sampling(max_tokens=8, temperature=1.0)
    for choice in range(4):
        drawn = generation("hbd", lexicon=LEXICON, sampling=sampling, choice=choice, choices=4)
        await run(frozen, drawn)
    assert (one.wanted, len(one.asked)) == ([4], 4)


async def test_who_leaves_an_answer_drawn_with_others_costs_no_call():
    one = SyntheticSpeaker(speaker(several=True).model, continues="none")
    sampling, left = Sampling(max_tokens=8, temperature=1.0), 0
    frozen = Frozen(OnceUpstream(one))
    for choice in range(4):
        drawn = generation("hbd", lexicon=LEXICON, sampling=sampling, choice=choice, choices=4)
        try:
            await run(frozen, drawn)
        except UpstreamCannotContinue:
            left += 1
    assert left > 1
    assert len(one.asked) == 1


async def test_one_token_can_always_be_had():
    one = SyntheticSpeaker(speaker().model, continues="none")
    sampling = Sampling(max_tokens=1, temperature=0.0)
    for prompt in prompts(20):
        steps, ending = await answer(TextUpstream(one, VOCABULARY), prompt, sampling, "auto")
        assert len(steps) == 1
        assert ending.finish_reason in ("length", "stop")


# --- prefixes


def test_a_prefix_of_text_is_its_opening_and_its_bytes_whatever_the_tokens():
    one = Prefix.of("ab")
    for token in (b"c", b"d"):
        one = one.extend(Candidate(token, -1.0, id_of(token)))
    two = Prefix.of("ab").extend(Candidate(b"cd", -1.0, id_of(b"cd")))
    assert one.digest == two.digest
    assert one.generated != two.generated
    others = [
        Prefix.of("abcd"),
        Prefix.of("abc").extend(Candidate(b"d", -1.0, 5)),
        Prefix.of(Chat((Message("user", "ab"),))),
        Prefix.of(Chat((Message("userab", ""),))),
        Prefix.of(Chat((Message("user", "a"), Message("b", "")))),
        Prefix.of(list(b"ab")),
    ]
    assert len({two.digest, *(o.digest for o in others)}) == 1 + len(others)
    assert two.digest.hex()[:16] == "41d621f955bdd31b"
    assert two.length == 4


def id_of(token):
    return 0 if not token else VOCABULARY.id_of(token)


def _position(candidates):
    return Position(tuple(candidates), None, 0.0)


async def _collect(inner, prompt):
    """The steps of a text, and what they ended with."""
    reader = SyntheticReader(VOCABULARY.encode(prompt.encode()), SIZE, strength=0.3)
    one = generation(
        prompt, lexicon=LEXICON, sampling=SAMPLINGS["greedy"], reader=reader, alpha=1.0, seed=0
    )
    steps = []
    try:
        async for event in decode(Frozen(inner), one, Budget(99)):
            steps += [event] if isinstance(event, Step) else []
    except UpstreamCannotContinue as error:
        return steps, error
    return steps, None
