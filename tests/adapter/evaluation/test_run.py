"""Whole suites over tiny models behind a real socket."""

import math
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from adapter.errors import ModelNotFound, PairError, SettingsError
from adapter.evaluation.evaluate import Moment, items_of
from adapter.evaluation.outcomes import result
from adapter.evaluation.run import run
from adapter.evaluation.suite import load_suite
from adapter.settings import load_settings
from adapter.upstream import completions
from tests.adapter.evaluation.suites import (
    ANSWERS,
    QUESTIONS,
    write_questions,
    write_settings,
    write_suite,
)
from tests.support.model_server import model_server
from tests.support.tiny import tiny
from tokenizer_maps.loading import load_vocabulary

LABELS = {"name": "labels", "kind": "labels", "reader": "questions", "data": "questions.jsonl"}
WRITTEN = {
    "name": "written",
    "kind": "generation",
    "reader": "questions",
    "data": "questions.jsonl",
    "shots": 2,
    "max_tokens": 5,
}
TEXT = {"name": "text", "kind": "text", "reader": "text", "data": "text.txt", "window": 40}
PROSE = "The harbour master kept a ledger of every ship. 東京の天気 naïve\n" * 6


@pytest.fixture(scope="module")
def server():
    with model_server(tiny().upstream) as server:
        yield server


@pytest.fixture
def evaluated(server, tmp_path):
    """Runs a suite in a folder of its own; gives the run, and how often the upstream was asked."""
    write_questions(tmp_path / "questions.jsonl")
    (tmp_path / "text.txt").write_text(PROSE, "utf-8")

    async def evaluate(*tasks, out="out", limit=None, watch=lambda moment: None, **more):
        sections = {key: more.pop(key) for key in ("limits", "models", "upstream") if key in more}
        settings = load_settings(write_settings(tmp_path, server.base_url, **sections))
        suite = load_suite(write_suite(tmp_path, *tasks, **more))
        before = len(server.requests)
        found = await run(suite, settings, tmp_path / out, limit, watch)
        return found, len(server.requests) - before

    return evaluate


def of(found, task, system, alpha=None):
    own = [o for o in found.outcomes if (o.task, o.system, o.alpha) == (task, system, alpha)]
    return sorted(own, key=lambda one: one.item)


async def test_every_kind_of_every_system(evaluated):
    moments: list[Moment] = []
    tasks = (ANSWERS, LABELS, WRITTEN, TEXT)
    found, asked = await evaluated(
        *tasks, alphas=[0.5, 2], alone=["expert", "antiexpert"], watch=moments.append
    )
    systems = {(o.system, o.alpha) for o in found.outcomes}
    assert systems == {
        ("hosted", None),
        ("adapted", 0.5),
        ("adapted", 2.0),
        ("expert news", None),
        ("anti-expert", None),
    }
    pieces = len(of(found, "text", "hosted"))
    count = {"asked": 5, "labels": 5, "written": 3, "text": pieces}
    assert pieces > 3
    for task, expected in count.items():
        for system, alpha in systems:
            own = of(found, task, system, alpha)
            assert len(own) == expected
            assert math.isfinite(result(own))
    assert sum(o.calls for o in found.outcomes) == asked
    assert all(o.calls == 0 for o in found.outcomes if o.system in ("expert news", "anti-expert"))
    first, last = moments[0], moments[-1]
    assert (first.done, last.done, last.total) == (0, last.total, 3 * sum(count.values()))
    for own in of(found, "labels", "adapted", 2.0):
        assert own.answer in "ABCD"
        assert own.tokens == 1
        assert own.certified + own.truncated == 1


async def test_bits_per_byte_are_the_hosted_models_own(evaluated):
    found, _ = await evaluated(TEXT, alphas=[1])
    model = AutoModelForCausalLM.from_pretrained(tiny().upstream, dtype=torch.float64).eval()
    words = load_vocabulary(f"hf:{tiny().upstream}")
    bits, size, pieces = 0.0, 0, pieces_of(found)
    assert "".join(pieces) == PROSE
    for piece in pieces:
        ids = words.encode(piece.encode())
        assert 10 < len(ids) <= 40
        with torch.inference_mode():
            rows = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
        bits -= sum(rows[j, ids[j + 1]].item() for j in range(len(ids) - 1)) / math.log(2)
        size += len(words.decode(ids[1:]))
    own = of(found, "text", "hosted")
    assert result(own) == pytest.approx(bits / size, rel=1e-4)
    assert sum(one.amount for one in own) == size


def pieces_of(found):

    words = load_vocabulary(f"hf:{tiny().upstream}")
    (task,) = found.suite.tasks
    items = items_of(task, lambda text, window: len(words.encode(text.encode())) <= window, None)
    assert {item.name for item in items} == set(found.groups["text"])
    return [item.prompt for item in items]


async def test_asked_again_nothing_is_asked_and_with_more_only_that(evaluated):
    tasks = (ANSWERS, LABELS)
    first, asked = await evaluated(*tasks, alphas=[1], limit=3)
    again, none = await evaluated(*tasks, alphas=[1], limit=3)
    assert (asked > 0, none) == (True, 0)
    assert again.outcomes == first.outcomes
    more, _ = await evaluated(*tasks, alphas=[1, 2])
    assert {o.item for o in first.outcomes} < {o.item for o in more.outcomes}
    kept = [o for o in more.outcomes if o in first.outcomes]
    assert len(kept) == len(first.outcomes)
    fewer, none = await evaluated(*tasks, alphas=[2], limit=3)
    assert none == 0
    assert {o.alpha for o in fewer.outcomes} == {None, 2.0}
    assert {o.item for o in fewer.outcomes} == {o.item for o in first.outcomes}


async def test_shots_stand_in_front_and_are_not_asked(evaluated, server):
    await evaluated(WRITTEN, alphas=[])
    own = [body["prompt"] for body in server.requests[-3:]]
    words = load_vocabulary(f"hf:{tiny().upstream}")
    shown = "".join(f"{p} Answer: {a[r[0]]}\n\n" for p, a, r in QUESTIONS[:2])
    texts = [words.decode(ids).decode() for ids in own]
    assert all(text.startswith(shown) for text in texts)
    assert [p for p, _, _ in QUESTIONS[2:] if any(p in text for text in texts)]


async def test_normalising_and_what_is_right(evaluated):
    by = {}
    for kind in ("mean", "sum", "bytes"):
        task = ANSWERS | {"name": kind, "normalise": kind}
        found, _ = await evaluated(task, alphas=[1], out=kind)
        by[kind] = of(found, kind, "adapted", 1.0)
    by_prompt = {p: (a, r) for p, a, r in QUESTIONS}
    for means, sums, shares in zip(*by.values(), strict=True):
        assert means.item == sums.item == shares.item
        assert len(means.scores) == len(sums.scores)
        answers, right = next(ar for ar in by_prompt.values() if means.answer in ar[0])
        for one in (means, sums, shares):
            best = max(range(len(one.scores)), key=lambda i: one.scores[i])
            assert one.answer == answers[best]
            assert one.score == float(best in right)
        for total, share, answer in zip(sums.scores, shares.scores, answers, strict=True):
            assert total / share >= len(answer.encode())


async def test_what_cannot_be_done_is_said_before_any_call(evaluated, server):
    before = len(server.requests)
    cases = (
        ({"alphas": [9]}, r"alphas: 9\.0 is outside limits\.alpha of the settings, 0\.0 to 4\.0"),
        ({"weights": [{"old": 1}]}, "weights: there is no expert 'old'"),
        ({"weights": [{"news": 7}]}, r"weights .* of news: 7\.0 is outside"),
        ({"upstream": {"tokenizer": "unknown"}}, "tasks.asked .*: echo with logprobs is not s"),
    )
    for more, message in cases:
        with pytest.raises(SettingsError, match=message):
            await evaluated(ANSWERS, **more)
    for more in ({"model": "none"}, {"tuned": "none"}):
        with pytest.raises(ModelNotFound, match="no model 'none' here; there is tiny"):
            await evaluated(ANSWERS, **more)
    assert len(server.requests) == before


async def test_forced_scoring_only_where_it_is_allowed(evaluated, server, monkeypatch):
    own, _ = await evaluated(ANSWERS, alphas=[1], out="echo")

    blind = replace(completions.COMPLETIONS, text_scoring="none")
    monkeypatch.setattr(completions, "COMPLETIONS", blind)
    before = len(server.requests)
    with pytest.raises(SettingsError, match=r"tasks\.asked \(tiny\): .*limits\.forced_scoring"):
        await evaluated(ANSWERS, alphas=[1])
    assert len(server.requests) == before
    forced, asked = await evaluated(ANSWERS, alphas=[1], limits={"forced_scoring": True})
    assert asked > 15  # one for each answer's token, at least
    for system, alpha in (("hosted", None), ("adapted", 1.0)):
        pairs = zip(
            of(own, "asked", system, alpha), of(forced, "asked", system, alpha), strict=True
        )
        for one, other in pairs:
            assert one.scores == pytest.approx(other.scores, abs=1e-3)


async def test_a_tuned_model_and_mixtures_are_systems_of_their_own(evaluated, tmp_path, server):
    settings = write_settings(tmp_path, server.base_url)
    other = yaml.safe_load(settings.read_text())["models"]["tiny"]
    found, _ = await evaluated(
        ANSWERS, alphas=[1], tuned="other", models={"other": other}, weights=[{"news": 0.5}]
    )
    names = list(dict.fromkeys((o.system, o.alpha) for o in found.outcomes))
    assert set(names) == {
        ("hosted", None),
        ("adapted", 1.0),
        ("adapted news=0.5", 1.0),
        ("tuned", None),
    }
    for hosted, tuned in zip(
        of(found, "asked", "hosted"), of(found, "asked", "tuned"), strict=True
    ):
        assert hosted.scores == pytest.approx(tuned.scores, abs=1e-9)


async def test_models_that_nobody_asks_are_not_loaded(evaluated, tmp_path, server):
    settings = write_settings(tmp_path, server.base_url)
    idle = yaml.safe_load(settings.read_text())["models"]["tiny"]
    (tmp_path / "nothing").mkdir()
    idle["pair"]["antiexpert"] = str(tmp_path / "nothing")
    found, _ = await evaluated(ANSWERS, alphas=[1], models={"idle": idle})
    assert len(of(found, "asked", "adapted", 1.0)) == 5
    with pytest.raises(PairError, match="nothing"):
        await evaluated(ANSWERS, tuned="idle", models={"idle": idle}, out="both")


async def test_fitted_strength(evaluated, tmp_path):
    many = [(f"{p} {i}", a, r) for i in range(4) for p, a, r in QUESTIONS]
    write_questions(tmp_path / "questions.jsonl", many)
    found, _ = await evaluated(ANSWERS, TEXT, alphas=[0.5, 2], validation="text")
    fits = found.fits()
    assert len(fits["asked"].outcomes) == 20
    assert len(fits["text"].outcomes) == len(of(found, "text", "hosted"))
    results = {alpha: result(of(found, "text", "adapted", alpha)) for alpha in (0.5, 2.0)}
    assert found.alpha() == min(results, key=results.get)


async def test_pieces_of_one_of_several_texts_are_not_parted(evaluated, tmp_path):
    (tmp_path / "other.txt").write_text(PROSE.upper(), "utf-8")
    found, _ = await evaluated(TEXT | {"data": ["text.txt", "other.txt"]}, alphas=[1])
    groups = found.groups["text"]
    assert len(set(groups.values())) == 2
    assert {name.split("#")[0] for name in groups} == set(groups.values())


async def test_an_item_that_cannot_be_asked_is_named(evaluated, tmp_path):
    long = ("ship " * 600, ["a", "b"], [0])
    write_questions(tmp_path / "questions.jsonl", [*QUESTIONS, long])
    with pytest.raises(
        SettingsError, match=r"tasks\.asked, item \w+, hosted: the text is longer than"
    ):
        await evaluated(ANSWERS, alphas=[1])
