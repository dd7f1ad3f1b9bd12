"""Reading a corpus: every document once, and what is wrong said with file and line."""

import json

import pytest

from adapter.errors import TuningError
from adapter.request import Message
from adapter.tuning.corpus import Corpus, Document, held_out, read_corpus

CHAT = {
    "messages": [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Here."},
    ]
}


@pytest.fixture
def lines(tmp_path):
    def write(*found):
        file = tmp_path / "corpus.jsonl"
        file.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in found))
        return file

    return write


def test_a_folder_is_read_in_order_and_without_what_is_hidden(tmp_path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "b" / "deep" / "two.txt").write_text("\n  second\n\n")
    (tmp_path / "a.md").write_text("# first")
    (tmp_path / "c.jsonl").write_text('{"text": "third"}\n\n{"text": " "}\n{"text": "fourth "}')
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "code.py").write_text("print()")
    (tmp_path / ".git" / "x.txt").write_text("no")
    corpus = read_corpus(tmp_path)
    assert [d.content for d in corpus.documents] == ["# first", "second", "third", "fourth "]
    assert not corpus.is_chat


def test_one_line_of_json_may_hold_what_others_take_for_the_end_of_a_line(lines):
    file = lines('{"text": "one\u2028two\x85three"}', {"text": "four"})
    assert [d.content for d in read_corpus(file).documents] == ["one\u2028two\x85three", "four"]


def test_chats_and_instructions_are_one_kind(lines):
    corpus = read_corpus(lines(CHAT, {"prompt": "Where?", "completion": "Here."}))
    assert corpus.is_chat
    first, second = corpus.documents
    assert first == second
    assert first.content == (Message("user", "Where?"), Message("assistant", "Here."))
    assert first.digest == second.digest


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "cut', "line 2: Unterminated string"),
        ("[1]", "line 2: a list instead of an object"),
        ({}, "none of text, messages, or prompt and completion among its fields (it has none)"),
        ({"body": "x"}, "among its fields (body)"),
        ({"prompt": "x"}, "none of text, messages, or prompt and completion"),
        ({"text": "x", "url": "y", "id": 1}, "line 2: unknown beside text: id, url"),
        ({"prompt": "x", "completion": "y", "system": "z"}, "beside prompt and completion: system"),
        ({"text": "x", **CHAT}, "unknown beside text: messages"),
        ({"text": 3}, "text is not a string"),
        ({"prompt": "x", "completion": " "}, "the completion is empty"),
        ({"messages": "x"}, "messages is not a list of turns"),
        ({"messages": []}, "messages is not a list of turns"),
        ({"messages": [{"role": "user", "content": "x"}]}, "not an answer of the assistant"),
        ({"messages": [{"role": "user"}]}, "message 1 does not have just the fields"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "the role of message 1 is none of"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "content of message 1 is not a str"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(lines, line, said):
    file = lines({"text": "fine"}, line)
    with pytest.raises(TuningError, match=r"corpus\.jsonl, line 2: ") as error:
        read_corpus(file)
    assert said in str(error.value)


def test_fields_can_be_left_aside(lines):
    file = lines({"text": "x", "url": "y"})
    assert [d.content for d in read_corpus(file, {"url"}).documents] == ["x"]


def test_what_is_no_corpus(tmp_path, lines):
    with pytest.raises(TuningError, match="no file or folder"):
        read_corpus(tmp_path / "nowhere")
    with pytest.raises(TuningError, match=r"holds no \.txt, \.md, \.markdown, \.jsonl file"):
        read_corpus(tmp_path)
    with pytest.raises(TuningError, match="holds no text"):
        read_corpus(lines({"text": ""}))
    with pytest.raises(TuningError, match="mixes 1 chats with 1 plain texts"):
        read_corpus(lines(CHAT, {"text": "x"}))
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    with pytest.raises(TuningError, match=r"is none of \.txt"):
        read_corpus(tmp_path / "x.pdf")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(TuningError, match=r"latin.txt is not UTF-8 text \(byte 3\)"):
        read_corpus(tmp_path / "latin.txt")


def corpus(*texts):
    return Corpus(tuple(map(Document, texts)))


def test_the_digest_is_of_what_is_said_not_of_where():
    one, two = corpus("a", "b"), corpus("b", "a")
    assert one.digest == corpus("a", "b").digest
    assert len({one.digest, two.digest, corpus("ab").digest}) == 3


def test_held_out_is_about_its_share_and_every_document_is_on_one_side():
    whole = corpus(*(f"text {i}" for i in range(2000)))
    learnt, aside = held_out(whole, 0.1)
    assert 150 < len(aside) < 250
    assert sorted(d.content for d in (*learnt, *aside)) == sorted(
        d.content for d in whole.documents
    )
    assert not set(learnt) & set(aside)


def test_held_out_does_not_depend_on_what_else_there_is_or_on_order():
    texts = [f"text {i}" for i in range(500)]
    _, aside = held_out(corpus(*texts), 0.1)
    _, more = held_out(corpus(*reversed(texts), *(f"more {i}" for i in range(500))), 0.1)
    assert set(aside) < set(more)


@pytest.mark.parametrize(("texts", "kept"), [("ab", 1), ("aabb", 2), ("aa", 0), ("a", 0)])
def test_equal_texts_are_never_on_both_sides(texts, kept):
    learnt, aside = held_out(corpus(*texts), 0.02)
    assert len(aside) == kept
    assert len(learnt) + len(aside) == len(texts)
    assert not set(learnt) & set(aside)
    assert held_out(corpus(*texts), 0) == (corpus(*texts).documents, ())
