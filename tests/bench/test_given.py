"""The bench of given texts: its ways where they can be known, the service's by the service."""

import json
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from adapter.adapter import Adapter
from adapter.evaluation.steered import Steered
from tests.bench import __main__ as command
from tests.bench import given
from tests.support.configured import settings_for
from tests.support.model_server import model_server
from tests.support.tiny import tiny
from tokenizer_maps import load_vocabulary

PROMPT = "The harbour master kept a ledger of every ship, and the weather was"
ANSWERS = [" in the harbour", " naïve 東京", "n't here; it's a small town", " 1987"]
ALPHAS = (0.0, 0.5, 2.0)


def options(*, other: bool = False, dtype: str = "float64", **more: object) -> Namespace:
    made = tiny()
    pair, expert = made.antiexpert, made.expert
    if other:
        pair, expert = made.other_antiexpert, made.other_expert
    plain = {"k": [3, 20], "alpha": list(ALPHAS), "rules": given.RULES, "dtype": dtype}
    names = {"hosted": str(made.upstream), "pair": str(pair), "expert": str(expert)}
    return Namespace(**names | plain | {"questions": None, "text": None} | more)


async def scored(system: given.Offline, prompt: str, answers: list[str]) -> dict:
    """By way and strength: (log-probability, tokens, bytes) of each answer."""
    replies = await system.scored(prompt, answers, system.strengths)
    return {
        (strength.system, strength.alpha): [(s.logprob, s.tokens, s.size) for s in reply.scored]
        for strength, reply in zip(system.strengths, replies, strict=True)
    }


def logs(path, ids: tuple[int, ...]) -> torch.Tensor:
    """Row by row, what a model gives the next token."""
    network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    with torch.inference_mode():
        return network(torch.tensor([ids])).logits[0].log_softmax(-1)


async def test_whole_is_equation_1():
    made, found = tiny(), await scored(given._system(options()), PROMPT, ANSWERS)
    words = load_vocabulary(f"hf:{made.upstream}")
    for number, answer in enumerate(ANSWERS):
        prompt, ids = words.encode(PROMPT.encode()), words.encode((PROMPT + answer).encode())
        assert ids[: len(prompt)] == prompt  # so that the answer's tokens are its own
        hosted, expert, anti = (
            logs(path, ids) for path in (made.upstream, made.expert, made.antiexpert)
        )
        for alpha in ALPHAS:
            steered = (hosted + alpha * (expert - anti)).log_softmax(-1)
            places = range(len(prompt), len(ids))
            expected = sum(float(steered[at - 1, ids[at]]) for at in places)
            assert found["whole", alpha][number][0] == pytest.approx(expected, abs=1e-9)
            sizes = (len(places), len(answer.encode()))
            assert found["whole", alpha][number][1:] == sizes
        for name, rows in (("hosted", hosted), ("expert", expert), ("anti-expert", anti)):
            expected = sum(float(rows[at - 1, ids[at]]) for at in range(len(prompt), len(ids)))
            assert found[name, None][number][0] == pytest.approx(expected, abs=1e-9)


async def test_zero_leaves_the_hidden_mass_where_it_is():
    made, answer, k, alpha = tiny(), ANSWERS[2], 20, 2.0
    found = await scored(given._system(options()), PROMPT, [answer])
    words = load_vocabulary(f"hf:{made.upstream}")
    prompt, ids = words.encode(PROMPT.encode()), words.encode((PROMPT + answer).encode())
    hosted, expert, anti = (
        logs(path, ids) for path in (made.upstream, made.expert, made.antiexpert)
    )
    expected, hidden = {"zero": 0.0, "zero, known": 0.0}, 0
    for at in range(len(prompt), len(ids)):
        row, moved, token = hosted[at - 1], alpha * (expert - anti)[at - 1], ids[at]
        shown = set(row.topk(k).indices.tolist())
        hidden += token not in shown
        for way, steered in (("zero", shown), ("zero, known", shown | {token})):
            scores = row.clone()
            for one in steered:
                scores[one] += moved[one]
            expected[way] += float(scores.log_softmax(-1)[token])
    assert 0 < hidden < len(ids) - len(prompt)
    for way, logprob in expected.items():
        assert found[f"top {k}: {way}", alpha][0][0] == pytest.approx(logprob, abs=1e-9)


async def test_where_everything_is_shown_all_ways_are_one():
    size = len(load_vocabulary(f"hf:{tiny().upstream}").tokens)
    system = given._system(options(k=[size]))
    found = await scored(system, PROMPT, ANSWERS)
    for way in given.WAYS:
        for alpha in ALPHAS:
            np.testing.assert_allclose(
                found[f"top {size}: {way}", alpha], found["whole", alpha], rtol=0, atol=1e-9
            )
    assert system.outside[size] == 0


@pytest.mark.parametrize("other", [False, True], ids=["identity", "bridged"])
async def test_without_strength_every_way_is_the_hosted_model(other):
    found = await scored(given._system(options(other=other)), PROMPT, ANSWERS)
    assert len(found) > 10
    for (way, alpha), its in found.items():
        if alpha == 0.0:
            np.testing.assert_allclose(its, found["hosted", None], rtol=0, atol=1e-9, err_msg=way)


async def test_what_is_known_of_a_hidden_token_tells_ways_apart():
    system = given._system(options())
    found = await scored(system, PROMPT, ANSWERS)
    told = {way: [its[0] for its in found[f"top 3: {way}", 2.0]] for way in given.WAYS}
    assert 0 < system.outside[20] < system.outside[3] <= system.tokens
    for one, another in (("zero", "zero, known"), ("imputed", "imputed, guessed")):
        assert not np.allclose(told[one], told[another], atol=1e-3)


@pytest.mark.parametrize("other", [False, True], ids=["identity", "bridged"])
@pytest.mark.parametrize("k", [3, 20])
async def test_imputed_is_what_the_service_answers(other, k):
    found = await scored(given._system(options(other=other, dtype="float32")), PROMPT, ANSWERS)
    way = f"top {k}: auto, imputed" if other else f"top {k}: imputed"
    with model_server(tiny().upstream) as server:
        settings = settings_for(server.base_url, other=other, top_logprobs=k, cache={"url": "none"})
        adapter = Adapter.from_settings(settings)
        try:
            own = adapter.model("tiny").settings.weights
            system = Steered(adapter, "tiny", "hosted", {"adapted": own}, ALPHAS[1:])
            replies = await system.scored(PROMPT, ANSWERS, system.strengths)
        finally:
            await adapter.close()
    for strength, reply in zip(system.strengths, replies, strict=True):
        ours = found["hosted" if strength.alpha is None else way, strength.alpha]
        theirs = [(one.logprob, one.tokens, one.size) for one in reply.scored]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)


def test_bits_per_byte(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(PROMPT + " 東京", "utf-8")
    result = given.run(options(text=text, tokens=5000))
    words = load_vocabulary(f"hf:{tiny().upstream}")
    ids = words.encode(text.read_bytes())
    rows = logs(tiny().upstream, ids)
    bits = -sum(float(rows[at - 1, ids[at]]) for at in range(1, len(ids))) / math.log(2)
    hosted = result["ways"][0]
    assert (hosted["way"], result["tokens"], result["items"]) == ("hosted", len(ids) - 1, 1)
    count = len(text.read_bytes()) - len(words.tokens[ids[0]])  # the first token is given
    assert hosted["result"] == pytest.approx(bits / count, abs=1e-9)
    some = given.run(options(text=text, tokens=10))
    assert some["tokens"] == 9


def test_questions_by_command(tmp_path, capsys):
    lines = [
        {
            "question_sentence": f"Where is ship {number}?",
            "choices": ["here", "in the town", "東京"],
            "answer": [str(number)],
        }
        for number in range(3)
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    asked = options(other=True)
    names = {"--hosted": asked.hosted, "--pair": asked.pair, "--expert": asked.expert}
    more = {"--questions": str(file), "--limit": "2", "--dtype": "float32"}
    told = [word for pair in (names | more).items() for word in pair]
    command.main(["given", "--json", *told, "--alpha", "0.5", "1"])
    result = json.loads(capsys.readouterr().out)
    assert (result["items"], result["kind"]) == (2, "answers")
    assert 0 < result["outside"]["20"] <= 1
    assert len(result["ways"]) == 1 + 2 * (len(given.RULES) + 2)
    assert all(0 <= one["result"] <= 1 and len(one["interval"]) == 2 for one in result["ways"])
    table = given.report(result)
    assert all(f"top 20: {name} |" in table for name in given.RULES)
