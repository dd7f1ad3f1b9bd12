"""The upstream's tokenizer at the server's root, as lm-evaluation-harness asks for it."""

import httpx
import pytest

from tests.support.scripted_adapter import ScriptedAdapter

JSON = {"content-type": "application/json"}


@pytest.fixture
def alone(serve):
    """A service of one model, which then needs no name."""
    return serve(ScriptedAdapter(models=("m",)))


def test_there_and_back(alone):
    text = "naïve 🙂"
    body = {"prompt": text, "add_special_tokens": False}
    told = httpx.post(f"{alone}/tokenize", json=body).json()
    assert told == {"count": len(text.encode()), "tokens": list(text.encode())}
    back = httpx.post(f"{alone}/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": text}


def test_special_tokens_by_their_names(alone):
    told = httpx.post(f"{alone}/detokenize", json={"tokens": [65, 0]}).json()
    assert told == {"prompt": "A<end>"}
    info = httpx.get(f"{alone}/tokenizer_info").json()
    assert info == {
        "bos_token": None, "eos_token": "<end>", "pad_token": "<end>", "chat_template": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": 7}, "prompt"),
        ("tokenize", {"prompt": "a", "x": 1}, "x"),
        ("detokenize", {"tokens": "a"}, "tokens"),
        ("detokenize", {"tokens": [256]}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens"),
        ("tokenize", [], None),
    ],
)
def test_mistakes_are_refused_by_name(alone, path, body, param):
    response = httpx.post(f"{alone}/{path}", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_of_several_models_one_must_be_named(hello):
    for answer in (
        httpx.post(f"{hello}/tokenize", json={"prompt": "a"}),
        httpx.get(f"{hello}/tokenizer_info"),
    ):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    named = httpx.post(f"{hello}/tokenize", json={"prompt": "a", "model": "m"})
    assert named.json()["tokens"] == [97]
    assert httpx.get(f"{hello}/tokenizer_info?model=org/other").status_code == 200
    assert httpx.get(f"{hello}/tokenizer_info?model=x").status_code == 404


def test_other_content_types_are_not_read(alone):
    response = httpx.post(
        f"{alone}/tokenize", content=b"{}", headers={"content-type": "text/plain"}
    )
    assert response.status_code == 415
