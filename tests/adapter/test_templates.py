"""Templates make special tokens; user text never does."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.errors import BadRequest, SettingsError
from adapter.prefix import Special
from adapter.request import Message
from adapter.templates import (
    PLAIN,
    compile_template,
    encode,
    plain,
    render,
    segments_of,
    split,
)
from tests.tokenizer_maps.worlds import digit_style, gpt2_style, write
from tokenizer_maps.loading import load_vocabulary

CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] | trim }}</s>\n"
    "{% endfor %}{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return load_vocabulary(write(tmp_path_factory.mktemp("digits"), digit_style(), "</s>"))


def text_of(segments):
    return b"".join(s.name.encode() if isinstance(s, Special) else s for s in segments).decode()


def test_a_template_makes_special_segments(vocabulary):
    segments = render(CHAT, [Message("user", "  hi there ")], vocabulary)
    expected = (Special("<s>"), b"user\nhi there", Special("</s>"), b"\n", Special("<s>"))
    assert segments == (*expected, b"assistant\n")


@given(st.lists(st.sampled_from(["<s>", "</s>", "</", "s", ">", "<", "\ue000", "0", "x", " "])))
def test_user_text_is_text_whatever_it_holds(vocabulary, pieces):
    text = "".join(["a", *pieces, "b"])
    segments = render(CHAT, [Message("user", text)], vocabulary)
    assert [s.name for s in segments if isinstance(s, Special)] == ["<s>", "</s>", "<s>"]
    assert segments[1] == f"user\n{text}".encode()
    ids = encode(segments, vocabulary)
    assert sum(i in vocabulary.specials.values() for i in ids) == 3


def test_a_prompt_of_text_holds_no_special_token(vocabulary):
    ids = encode(plain("<s>hello</s>"), vocabulary)
    assert not set(ids) & set(vocabulary.specials.values())
    assert vocabulary.decode(ids) == b"<s>hello</s>"


def test_split_cuts_behind_the_last_special(vocabulary):
    segments = render(CHAT, [Message("user", "hi")], vocabulary)
    fixed, text = split(segments, vocabulary)
    assert text == b"assistant\n"
    assert fixed[-1] == vocabulary.specials["<s>"]
    assert encode(segments, vocabulary) == fixed + vocabulary.encode(text)


def test_a_special_the_vocabulary_lacks_becomes_text(vocabulary):
    assert split((Special("<|im_end|>"), b"x"), vocabulary) == ((), b"<|im_end|>x")


def test_segments_of_ids_is_the_way_back(vocabulary):
    segments = render(CHAT, [Message("user", "hi 123")], vocabulary)
    ids = encode(segments, vocabulary)
    assert text_of(segments_of(ids, vocabulary)) == text_of(segments)
    assert encode(segments_of(ids, vocabulary), vocabulary) == ids


def test_what_a_tokenizer_puts_in_front_is_put_there_once(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = gpt2_style()
    tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", 0)]
    )
    started = load_vocabulary(write(tmp_path, tokenizer, "<|end|>"))
    assert started.start == (0,)
    assert encode(plain("hi"), started) == (0, *started.encode(b"hi"))
    assert encode((Special("<|end|>"), b"hi"), started) == (0, *started.encode(b"hi"))


def test_plain_is_the_texts_alone(vocabulary):
    messages = [Message("system", "be brief"), Message("user", "hi")]
    assert text_of(render(PLAIN, messages, vocabulary)) == "be brief\n\nhi\n\n"


def test_a_template_that_refuses_says_why(vocabulary):
    source = "{{ raise_exception('only one system message') }}"
    with pytest.raises(BadRequest, match="only one system message"):
        render(source, [Message("user", "hi")], vocabulary)


def test_a_template_cannot_reach_out_of_its_sandbox(vocabulary):
    source = "{{ messages.__class__.__mro__ }}"
    with pytest.raises(BadRequest):
        render(source, [Message("user", "hi")], vocabulary)


def test_a_broken_template_is_a_settings_error():
    with pytest.raises(SettingsError, match="chat template"):
        compile_template("{% for %}")
