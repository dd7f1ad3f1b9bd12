"""Answer-only loss: exactly the answer's tokens and its end, by examples made by hand."""

import pytest

from adapter.errors import BadRequest, TuningError
from adapter.request import Message
from adapter.templates import encode, render
from adapter.tuning.answers import answer_rows
from adapter.tuning.rows import UNLEARNT
from tests.support.tiny import tiny
from tokenizer_maps.loading import load_vocabulary

VOCABULARY = load_vocabulary(f"hf:{tiny().antiexpert}")
START, END = VOCABULARY.specials["<|bos|>"], VOCABULARY.specials["<|endoftext|>"]
TEMPLATE = (
    "{% for m in messages %}<|bos|>{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)


def ids(text):
    return list(VOCABULARY.encode(text.encode()))


def chat(*contents):
    return tuple(Message(("user", "assistant")[i % 2], c) for i, c in enumerate(contents))


def rows(*chats, template=TEMPLATE, length=512):
    found, _ = answer_rows(chats, VOCABULARY, template, length)
    return [(r["input_ids"].tolist(), r["labels"].tolist()) for r in map(found.__getitem__, range(len(found)))]  # fmt: skip  # noqa: E501


def test_the_answer_and_its_end_are_learnt_and_nothing_else():
    asked = [START, *ids("user\nWhat is the capital?"), END, *ids("\n"), START, *ids("assistant\n")]
    answer = [*ids("It isn't here."), END]
    [(found, labels)] = rows(chat("What is the capital?", "It isn't here."))
    assert found == asked + answer  # the line break behind the end is nobody's
    assert labels == [UNLEARNT] * len(asked) + answer


def test_what_is_before_an_answer_is_what_is_served():
    messages = chat("What?", "This.", "And?", "That.")
    found, labels = rows(messages)[1]
    served = encode(render(TEMPLATE, messages[:3], VOCABULARY), VOCABULARY)
    assert tuple(found[: len(served)]) == served
    assert labels == [UNLEARNT] * len(served) + found[len(served) :]


def test_every_answer_of_a_chat_is_learnt_once():
    learnt = [
        [i for i in labels if i != UNLEARNT]
        for _, labels in rows(chat("What?", "This.", "And?", "That."))
    ]
    assert learnt == [[*ids("This."), END], [*ids("That."), END]]


def test_what_the_prompt_ends_with_and_an_answer_joins_is_learnt_as_one_token():
    """The prompt ends with a space; with it the answer is another token."""
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert ids(": ")[-1] == ids(" ")[0]
    assert ids(": the")[-1] == ids(" the")[0] != ids("the")[0]
    [(found, labels)] = rows(chat("What?", "the"), template=template)
    start = list(VOCABULARY.start)
    opened = [*start, *ids("user: What?\nassistant:")]
    assert found == [*opened, *ids(" the\n")]
    assert labels == [UNLEARNT] * len(opened) + ids(" the\n")  # here the line break ends it


def test_special_tokens_in_what_is_said_are_plain_text():
    [(found, labels)] = rows(chat("Say <|endoftext|>", "<|endoftext|>!"))
    assert found.count(END) == 2
    assert [i for i in labels if i != UNLEARNT] == [*ids("<|endoftext|>!"), END]


def test_long_chats_are_cut_and_without_an_answer_left_out():
    messages = chat("What is the capital?", "It isn't here.")
    [(whole, _)] = rows(messages)
    opened = len(encode(render(TEMPLATE, messages[:1], VOCABULARY), VOCABULARY))
    [(found, labels)] = rows(messages, length=opened + 2)
    assert found == whole[: opened + 2]
    assert labels[-3:] == [UNLEARNT, *whole[opened : opened + 2]]
    assert rows(messages, length=opened) == []
    for length, cut in ((opened, 1), (opened + 2, 1), (len(whole), 0)):
        assert answer_rows([messages], VOCABULARY, TEMPLATE, length)[1] == cut


def test_a_template_that_does_not_fit():
    with pytest.raises(TuningError, match="--chat-template"):
        rows(chat("What?", "This."), template="{{ messages|length }} {{ add_generation_prompt }}")
    with pytest.raises(BadRequest, match="no users"):
        rows(chat("What?", "This."), template="{{ raise_exception('no users') }}")
