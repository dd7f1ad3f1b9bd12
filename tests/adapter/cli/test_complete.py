"""adapter complete, in process and from a service."""

import io
import json

import pytest
from rich.console import Console

import adapter.local
from adapter.cli import main
from adapter.client import Answer, AnswerUsage
from adapter.errors import PairError
from adapter.explanation import marked
from tests.support.scripted_adapter import (
    HELLO,
    USAGE,
    ScriptedAdapter,
    ScriptedLocal,
    ending,
    step,
)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command line; gives exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["adapter", *words])
        with pytest.raises(SystemExit) as done:
            main()
        captured = capsys.readouterr()
        return int(done.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def scripted(monkeypatch) -> ScriptedAdapter:
    """Stands in for the adapter that `complete` would load."""
    engine = ScriptedAdapter()
    local = ScriptedLocal(engine)
    monkeypatch.setattr(adapter.local.Adapter, "from_settings", lambda _: local)
    return engine


def test_in_process(run, scripted):
    assert run("complete", "s.yaml", "--model", "m", "p") == (0, "Hi there\n", "")
    (request,) = scripted.asked
    assert (request.prompt, request.alpha, request.trace) == ("p", None, "steps")
    assert (request.sampling.max_tokens, request.sampling.temperature) == (64, 0.0)
    assert scripted.closed


def test_options(run, scripted):
    run("complete", "s.yaml", "p", "--model", "m", "--alpha", "2", "--max-tokens", "3",
        "--temperature", "0.5")  # fmt: skip
    (request,) = scripted.asked
    assert (request.alpha, request.sampling.max_tokens) == (2.0, 3)
    assert request.sampling.temperature == 0.5


def test_json_is_the_same_in_process_and_from_a_service(run, scripted, hello):
    local = run("complete", "s.yaml", "--model", "m", "p", "--json")
    remote = run("complete", "--url", hello, "--model", "m", "p", "--json")
    assert local == remote
    answer = json.loads(local[1])
    assert (answer["text"], answer["finish_reason"], answer["flags"]) == ("Hi there", "stop", [])
    assert [step["token"] for step in answer["steps"]] == ["Hi", " there", "<|end|>"]
    assert answer["usage"]["upstream"]["calls"] == 2


def test_alpha_reaches_a_service(run, serve):
    engine = ScriptedAdapter()
    assert run("complete", "--url", serve(engine), "--model", "m", "p", "--alpha", "3")[0] == 0
    assert engine.asked[0].alpha == 3.0


def test_changed_tokens_are_marked():
    held = (*HELLO[:2], step("\u20ac"[:0], ""), step("x", "", rank=4), ending("length", "x"))
    steps = held[:-1]
    answer = Answer("Hi therex", steps, AnswerUsage(1, 4, USAGE), "length")
    text = marked(answer.text, answer.steps)
    assert text.plain == "Hi therex"
    assert [(span.start, span.end) for span in text.spans] == [(2, 8), (8, 9)]
    out = io.StringIO()
    Console(file=out, force_terminal=True, color_system="standard").print(text)
    assert "\x1b[" in out.getvalue()


def test_an_explanation_lists_what_was_changed(run, scripted):
    code, out, _ = run("complete", "s.yaml", "--model", "m", "p", "--explain")
    assert code == 0
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == "Hi there"
    assert "1 of 3 tokens are not the upstream's own favourite." in lines
    (row,) = [line for line in lines if "' there'" in line]
    cells = [cell.strip() for cell in row.split("│")[1:-1]]
    assert cells == ["' there'", "60.7 %", "22.3 %", "+1.00", "3", "truncated"]


def test_an_explanation_can_be_printed():
    shown = (step(b"\xff", "", rank=None, flags=frozenset({"imputed"})), step("", special="end"))
    usage = AnswerUsage(1, 2, USAGE)
    out = str(Answer("a", shown, usage, "stop").explain())
    assert "'\\xff'" in out
    assert "hidden" in out
    assert "truncated imputed" in out
    assert "ask for a trace" in str(Answer("a", (), usage, "stop").explain())
    assert "0 of 1" in str(Answer("a", (step("a"),), usage, "stop").explain())


@pytest.mark.parametrize(
    "words",
    [
        ("complete", "p"),
        ("complete", "s.yaml", "p"),
        ("complete", "p", "--model", "m"),
        ("complete", "s.yaml", "p", "--model", "m", "--url", "http://127.0.0.1:9"),
        ("complete", "s.yaml", "p", "--model", "m", "--max-tokens", "0"),
        ("complete", "s.yaml", "p", "--model", "m", "--temperature", "3"),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_exit_code_2(run, words):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_failures_are_one_line_and_exit_code_1(run, monkeypatch):
    code, out, err = run("complete", "--url", "http://127.0.0.1:9", "--model", "m", "p")
    assert (code, out) == (1, "")
    assert err.startswith("adapter: the service cannot be reached")
    assert err.count("\n") == 1

    def broken(_):
        raise PairError("the expert is gone")

    monkeypatch.setattr(adapter.local.Adapter, "from_settings", broken)
    assert run("complete", "s.yaml", "p", "--model", "m") == (
        1,
        "",
        "adapter: the expert is gone\n",
    )


def test_an_adapter_is_closed_when_a_request_is_refused(run, scripted):
    code, _, err = run("complete", "s.yaml", "p", "--model", "x")
    assert (code, err) == (1, "adapter: no such model\n")
    assert scripted.closed
