"""Public formats, each in a few lines of our own, as items."""

import json
import logging

import pytest

from adapter.errors import SettingsError
from adapter.evaluation.evidence import write_evidence
from adapter.evaluation.readers import FORMATS, read


@pytest.fixture
def written(tmp_path):
    """Writes objects as JSONL, or text as it stands, and gives the paths."""

    def write(*content, name="data.jsonl"):
        path = tmp_path / name
        rows = [one if isinstance(one, str) else json.dumps(one) for one in content]
        path.write_text("\n".join(rows), "utf-8")
        return [path]

    return write


def news(**changes):
    """A question as RealTimeQA has them."""
    fields = {
        "question_id": "20300104_0",
        "question_date": "2030/01/04",
        "question_source": "The Herald",
        "question_sentence": "Who rules <a href='x'>Arvendale</a>  now?",
        "choices": ["Ada Mohn", "Lena & Voss", "", "Bo <em>Lund</em>"],
        "answer": ["1"],
        "evidence": 'On Monday <a data-x="1" href="y">Lena &amp; Voss</a>\ntook office.',
    }
    return fields | changes


def test_realtimeqa_by_answers(written):
    (item,) = read("realtimeqa", written(news()), None, "answers")
    assert item.name == "20300104_0"
    assert item.prompt == "Question: Who rules Arvendale now?\nAnswer:"
    assert item.answers == (" Ada Mohn", " Lena & Voss", " Bo Lund")
    assert item.right == (1,)


def test_realtimeqa_by_labels_and_generated(written):
    paths = written(news(answer=["3"]), news(question_id="b", choices=["TRUE", "FALSE"], answer=1))
    first, second = read("realtimeqa", paths, None, "labels")
    options = "A. Ada Mohn\nB. Lena & Voss\nC. Bo Lund"
    assert first.prompt == f"Question: Who rules Arvendale now?\n{options}\nAnswer:"
    assert (first.answers, first.right) == (("A", "B", "C"), (2,))
    assert (second.answers, second.right) == (("A", "B"), (1,))
    assert first.group == second.group  # the same question
    assert first.name != second.name
    (generated, _) = read("realtimeqa", paths, "{date} {source}: {question}", "generation")
    assert generated.prompt == "2030/01/04 The Herald: Who rules Arvendale now?"
    assert (generated.answers, generated.right) == (("Bo Lund",), ())


def test_realtimeqa_leaves_out_what_has_no_answer_and_says_so(written, caplog):
    paths = written(news(answer=[]), news())
    with caplog.at_level(logging.WARNING):
        assert len(read("realtimeqa", paths, None, "answers")) == 1
    assert "1 questions without an answer are left out" in caplog.text
    assert "Arvendale" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": ["4"]}, "'answer' must list places among 4 options, from 0"),
        ({"answer": ["B"]}, "'answer' must list places"),
        ({"answer": ["-1"]}, "'answer' must list places"),
        ({"answer": ["2"]}, "the right one of the 'choices' is empty"),
        ({"choices": "AB"}, "kind 'answers' needs two options"),
        ({"choices": [1, 2]}, "'choices' must be a list of texts"),
        ({"question_sentence": " "}, "'question_sentence' must be a text that is not empty"),
    ],
)
def test_what_realtimeqa_cannot_mean(written, changes, message):
    paths = written(news(), news(**({"answer": ["0"]} | changes)))
    with pytest.raises(SettingsError, match=rf"data\.jsonl, line 2: {message}"):
        read("realtimeqa", paths, None, "answers")


def test_the_evidence_as_a_corpus_and_its_questions(written, tmp_path):
    (source,) = written(news(), news(evidence="  "), news(question_id="c", evidence="<p>B.</p>"))
    corpus, questions = tmp_path / "new" / "corpus.jsonl", tmp_path / "questions.jsonl"
    assert write_evidence(source, corpus, questions) == 2
    assert [json.loads(line) for line in corpus.read_text().splitlines()] == [
        {"text": "On Monday Lena & Voss took office."},
        {"text": "B."},
    ]
    names = [item.name for item in read("realtimeqa", [questions], None, "answers")]
    assert names == ["20300104_0", "c"]
    bare = written(news(evidence=None), name="bare.jsonl")
    with pytest.raises(SettingsError, match="has no evidence"):
        write_evidence(*bare, corpus, questions)


HEADER = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source"


def test_truthfulqa_is_the_best_answer_against_the_incorrect_ones(written):
    rows = [
        f'x,Myths,Is it {i}?,"No, {i}","Not; No, {i}",Yes; Maybe ; Perhaps;,-' for i in range(80)
    ]
    items = read("truthfulqa", written(HEADER, *rows, name="t.csv"), None, "answers")
    assert items[5].prompt == "Question: Is it 5?\nAnswer:"
    assert sorted(items[5].answers) == [" Maybe", " No, 5", " Perhaps", " Yes"]
    assert all(item.answers[item.right[0]] == f" No, {i}" for i, item in enumerate(items))
    places = [item.right[0] for item in items]
    assert all(8 <= places.count(place) <= 32 for place in range(4))  # position tells nothing
    again = read("truthfulqa", written(HEADER, *reversed(rows), name="t.csv"), None, "labels")
    assert [item.right[0] for item in reversed(again)] == places
    assert len({item.name for item in items}) == 80


def test_a_row_of_truthfulqa_over_two_lines_and_a_bad_one(written):
    paths = written(HEADER, 'x,y,"Is\nit?",No,No,Yes,-', "x,y,Is it?,,No,Yes,-", name="t.csv")
    with pytest.raises(SettingsError, match=r"t\.csv, line 4: 'Best Answer' must be a text"):
        read("truthfulqa", paths, None, "answers")
    paths = written("Question,Best Answer", "Is it?,No", name="t.csv")
    with pytest.raises(SettingsError, match="no 'Incorrect Answers' among its fields"):
        read("truthfulqa", paths, None, "answers")


def test_gsm8k_accepts_the_whole_solution(written):
    solution = "Ann has 2*3=<<2*3=6>>6 pens.\n#### 6"
    (item,) = read("gsm8k", written({"question": "Pens?", "answer": solution}), None, "generation")
    assert item.prompt == "Question: Pens?\nAnswer:"
    assert item.answers == ("Ann has 2*3=6 pens.\n#### 6",)
    with pytest.raises(SettingsError, match="line 1: 'answer' must end with '#### ' and a number"):
        read("gsm8k", written({"question": "Pens?", "answer": "6"}), None, "generation")


def test_triviaqa_accepts_the_aliases(written):
    flat = {"question": "Who?", "question_id": "tc_1", "answer": "Ann", "aliases": ["Anna", "Ann"]}
    nested = {"question": "Who?", "answer": {"value": "Ann", "aliases": ["Anna"]}}
    first, second = read("triviaqa", written(flat, nested), None, "generation")
    assert first.answers == second.answers == ("Ann", "Anna")
    assert first.name == "tc_1"
    with pytest.raises(SettingsError, match="there is no 'aliases' among its fields"):
        read("triviaqa", written({"question": "Who?", "answer": "Ann"}), None, "generation")


def test_nq_open_accepts_a_list(written):
    asked = {"question": "who", "answer": ["Ann", "Ann ", "Bo"]}
    (item,) = read("nq-open", written(asked), None, "generation")
    assert item.answers == ("Ann", "Bo")
    with pytest.raises(SettingsError, match="line 1: no answer is accepted"):
        read("nq-open", written(asked | {"answer": []}), None, "generation")


def test_questions_of_our_own(written):
    options = {"prompt": "The capital is ", "answers": ["Orl", "Ulm"], "right": [1]}
    paths = written(options)
    (item,) = read("questions", paths, None, "answers")
    assert item.prompt == "The capital is "
    assert item.answers == ("Orl", "Ulm")  # the prompt ends with white space
    assert item.right == (1,)
    (labelled,) = read("questions", paths, None, "labels")
    assert labelled.prompt == "The capital is \nA. Orl\nB. Ulm\nAnswer:"
    (generated,) = read("questions", paths, None, "generation")
    assert generated.answers == ("Ulm",)
    (opened,) = read("questions", written(options | {"right": None}), None, "generation")
    assert opened.answers == ("Orl", "Ulm")
    with pytest.raises(SettingsError, match="line 1: kind 'labels' needs two options or more"):
        read("questions", written(options | {"right": None}), None, "labels")
    with pytest.raises(SettingsError, match="line 1: 'right' lists no answer"):
        read("questions", written(options | {"right": []}), None, "labels")


def test_more_options_than_letters(written):
    many = {"prompt": "?", "answers": [f"{i}" for i in range(27)], "right": 26}
    assert read("questions", written(many), None, "answers")[0].right == (26,)
    with pytest.raises(SettingsError, match="line 1: 27 options are more than there are letters"):
        read("questions", written(many), None, "labels")


def test_texts(written):
    whole = written("One.\n\nTwo. {brace}\n", name="a.txt")
    lines = written({"text": "Three."}, "", {"text": "Four.", "more": 1})
    items = read("text", whole + lines, None, "text")
    assert [item.prompt for item in items] == ["One.\n\nTwo. {brace}\n", "Three.", "Four."]
    with pytest.raises(SettingsError, match=r"a\.txt is empty"):
        read("text", written(" \n", name="a.txt"), None, "text")


def test_names_are_their_own_and_stay(written):
    asked = [{"prompt": p, "answers": ["x"]} for p in ("a", "b", "a")]
    names = [item.name for item in read("questions", written(*asked), None, "generation")]
    assert len(set(names)) == 3
    templated = read("questions", written(*asked), "Q {prompt}", "generation")
    assert [item.name for item in templated] == names
    assert templated[0].group == templated[2].group != templated[1].group


@pytest.mark.parametrize(
    "template", ["{quest}", "{0}", "{question", "{question.x}", "{question!z}"]
)
def test_a_template_names_what_is_known(written, template):
    expected = r"knows \{question\}, \{date\}, \{source\}, \{options\}"
    with pytest.raises(SettingsError, match=expected):
        read("realtimeqa", written(news()), template, "answers")


def test_what_a_reader_does_not_have(written, tmp_path):
    with pytest.raises(SettingsError, match="no reader 'mmlu'; known: realtimeqa, truthfulqa"):
        read("mmlu", written(news()), None, "answers")
    with pytest.raises(SettingsError, match="'gsm8k' has nothing for kind 'labels'; it has: gen"):
        read("gsm8k", written(news()), None, "labels")
    with pytest.raises(SettingsError, match="there is nothing to ask"):
        read("gsm8k", written(), None, "generation")
    with pytest.raises(SettingsError, match=r"none\.jsonl cannot be read: No such file"):
        read("gsm8k", [tmp_path / "none.jsonl"], None, "generation")


@pytest.mark.parametrize(
    ("line", "message"), [("{", "line 2: not JSON"), ("[1]", "line 2: not an object")]
)
@pytest.mark.parametrize("reader", sorted(FORMATS.keys() - {"truthfulqa"}))
def test_lines_that_are_no_objects(written, reader, line, message):
    kind = next(iter(FORMATS[reader].templates))
    with pytest.raises(SettingsError, match=message):
        read(reader, written("", line), None, kind)
    (path,) = written("x")
    path.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8 text"):
        read(reader, [path], None, kind)
