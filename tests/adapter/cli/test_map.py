"""adapter map: what it prints, and its exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapter.cli import app
from adapter.cli import map as command
from adapter.cli.map import MapFailed
from tests.tokenizer_maps import worlds
from tokenizer_maps import TokenMap


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tokenizers")
    upstream = worlds.write(folder / "gpt", worlds.gpt2_style(), "<|end|>")
    return upstream, worlds.write(folder / "digits", worlds.digit_style(), "</s>")


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "code.py").write_text(worlds.CODE)
    (tmp_path / "corpus" / "prose.txt").write_text(worlds.PROSE)
    return str(tmp_path / "corpus")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["map", *words], env={"COLUMNS": "200"})


def done(*words: str) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_build_and_show_the_file(specs: tuple[str, str], tmp_path: Path) -> None:
    path = Path(done("build", *specs, "--out", str(tmp_path / "new" / "maps")).strip())
    assert path.parent == tmp_path / "new" / "maps"
    assert path.suffix == ".tkmap"
    before = path.read_bytes()
    assert Path(done("build", *specs, "--out", str(path.parent)).strip()) == path
    assert path.read_bytes() == before
    shown = json.loads(done("show", str(path), "--json"))
    compared = json.loads(done("show", *specs, "--json"))
    assert shown["coverage"] == compared["coverage"]
    assert shown["upstream"] == compared["upstream"]
    assert "one pair token" in done("show", str(path))


def test_build_puts_the_file_where_the_service_looks(
    specs: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Path(done("build", *specs).strip()).parent == tmp_path / "adapter" / "maps"


def test_show_tables(specs: tuple[str, str], corpus: str) -> None:
    output = done("show", *specs, "--corpus", corpus)
    for word in ("duplicates", "longest", "nested: no", "Python", "prose", "ends aligned"):
        assert word in output.replace("what another does", "duplicates")
    found = json.loads(done("show", *specs, "--corpus", corpus, "--json"))
    assert [line["kind"] for line in found["running"]] == ["Python", "prose"]


def test_show_known() -> None:
    assert "cl100k → Llama-3: 100.0 % exact" in done("show", "--known")
    known = json.loads(done("show", "--known", "--json"))["known"]
    assert {"upstream", "pair", "exact", "digits", "expect"} <= known[0].keys()


def test_verify(specs: tuple[str, str], corpus: str) -> None:
    output = done("verify", *specs, "--corpus", corpus, "--samples", "20")
    assert "ranges agree with a scan" in output
    assert "aligned" in output
    found = json.loads(done("verify", *specs, "--corpus", corpus, "--samples", "20", "--json"))
    assert {check["failed"] for check in found["checks"]} == {0}
    assert len(found["running"]) == 2


def test_verify_fails_where_a_check_does(
    specs: tuple[str, str], corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = TokenMap.build

    def wrong(upstream: object, pair: object) -> TokenMap:
        made = build(upstream, pair)
        made.first[:] = -1
        return made

    monkeypatch.setattr(TokenMap, "build", wrong)
    result = run("verify", *specs, "--corpus", corpus, "--samples", "20")
    assert isinstance(result.exception, MapFailed)
    assert "checks failed" in str(result.exception)
    assert "first tokens agree" in result.stdout


@pytest.mark.parametrize(
    "words",
    [
        ("show",),
        ("show", "a", "b", "c"),
        ("show", "--known", "a"),
        ("show", "a.tkmap", "--corpus", "x"),
        ("show", "gpt2", "hf:x"),
        ("build", "hf:x", "gpt2"),
        ("build", "hf:x"),
        ("verify", "hf:x", "hf:y"),
        ("verify", "hf:x", "hf:y", "--samples", "1"),
        ("no-such-command",),
    ],
)
def test_wrong_usage(words: tuple[str, ...]) -> None:
    assert run(*words).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ("show", "none.tkmap"),
        ("show", "hf:none", "hf:none"),
        ("build", "hf:none", "hf:none"),
        ("verify", "hf:none", "hf:none", "--corpus", "none"),
    ],
)
def test_what_cannot_be_used(words: tuple[str, ...]) -> None:
    assert isinstance(run(*words).exception, MapFailed)


def test_a_folder_that_cannot_be_made(specs: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("build", *specs, "--out", str(tmp_path / "file"))
    assert isinstance(result.exception, MapFailed)
    assert "--out" in str(result.exception)


@pytest.mark.parametrize("name", ["build", "show", "verify"])
def test_help_has_an_example(name: str) -> None:
    assert "Example" in done(name, "--help")


def test_the_bar_shows_after_two_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(command.time, "monotonic", lambda: now)
    with command._progress() as progress:
        progress.add_task("reading", total=3)
        assert list(progress.get_renderables()) == []
        now = 103.0
        assert len(list(progress.get_renderables())) == 1
