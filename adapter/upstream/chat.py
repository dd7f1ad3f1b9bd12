"""/v1/chat/completions: a chat is sent as it is, and the upstream renders it."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from adapter.candidates import Candidate, Draft, Position, Usage, make_position
from adapter.errors import BadRequest, UpstreamMalformed
from adapter.prefix import pending, prompt_length
from adapter.request import Chat
from adapter.settings import UNKNOWN
from adapter.upstream.answers import (
    choices_of,
    finish_of,
    nats,
    only_choice,
    text_of,
    top,
    usable,
    usage_of,
)
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.completions import EVERY, check_text
from adapter.upstream.names import Names, model_of, names_of
from adapter.upstream.pieces import is_over, pieces
from adapter.upstream.printed import LONGEST, Printed, beginning
from adapter.upstream.profiles import always_sent, never_sent
from adapter.upstream.tokens import given
from adapter.upstream.transport import MAX_TOKENS, Endpoint, Transport, Turn
from adapter.upstream.upstream import Allowance
from tokenizer_maps.vocabulary import Vocabulary

_PLAIN = {
    "temperature": 0,
    "top_p": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "n": 1,
    "stream": False,
    "logprobs": True,
}

# What servers fill in by themselves where it is not said; hosted APIs refuse to be told.
_OWN = {"top_k": EVERY, "min_p": 0, "repetition_penalty": 1}
_BY_ID = {"return_tokens_as_token_ids": True}

_MARKS: dict[str | None, dict[str, Any]] = {"prefix": {"prefix": True}}
_FIELDS: dict[str | None, dict[str, Any]] = {
    "continue_final_message": {"continue_final_message": True, "add_generation_prompt": False}
}
FORMS = ("trailing message", "continue_final_message", "prefix")
"""How an assistant's last message can be gone on with: `continues_by` of a chat."""

_LETTER, _FORCE = b"a", 100


class ChatSpeaker:
    """A model behind /v1/chat/completions, asked for k candidates a token.

    `capabilities.continues_by` is the form in which what was said so far is gone on with.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        vocabulary: Vocabulary | None,
        top_logprobs: int,
        capabilities: Capabilities,
    ) -> None:
        limit = capabilities.limited_by or MAX_TOKENS
        self._transport = Transport(endpoint, chat=True, limited_by=limit)
        self._names = names_of(vocabulary)
        self._k = top_logprobs
        self._letter = None if vocabulary is None else vocabulary.id_of(_LETTER)
        self.capabilities = capabilities
        needs = always_sent(endpoint.base_url)
        refused = never_sent(endpoint.base_url)
        self._plain: dict[str, Any] = {k: v for k, v in _PLAIN.items() if k not in refused}
        self._plain |= {"top_logprobs": top_logprobs, **needs}
        # Where a provider has to know each field, `_OWN` would leave few to choose from.
        if capabilities.unknown_fields == "ignored" and not needs:
            by_id = capabilities.named_by == "ids" and vocabulary is not None
            self._plain |= _OWN | (_BY_ID if by_id else {})
        model = model_of(endpoint, vocabulary)
        told = (capabilities.continues_by or "none", capabilities.named_by or UNKNOWN)
        self.identity: tuple[str, ...] = ("chat", *model, str(top_logprobs), *told)

    async def ask(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """A run of up to n positions behind what the assistant has said so far.

        Where the server shows nothing of a first token, a second call has it shown with another
        one forced. Raises BadRequest for a prompt that is no chat.
        """
        messages = self._messages(prompt, said)
        answer = await self._transport.complete(messages, self._fields(said, n, sampled), budget)
        run, usage = self._run(said, n), usage_of(answer.body, answer.calls)
        positions = run.read(only_choice(answer.body))
        if run.lost_first:
            single = await self._forced(messages, said, budget)
            return Draft(single.positions, None, usage + single.usage)
        return Draft(positions, run.finish(usage.completion_tokens), usage)

    async def draws(
        self, prompt: str | Chat, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        """Sampled answers of up to n positions; every step of them is shown."""
        messages, fields = self._messages(prompt, ""), self._fields("", n, True) | {"n": choices}
        answer = await self._transport.complete(messages, fields, budget)
        runs = [(self._run("", n), choice) for choice in choices_of(answer.body, choices)]
        first, *others = (Draft(run.read(c), run.finish(0), Usage()) for run, c in runs)
        return (replace(first, usage=usage_of(answer.body, answer.calls)), *others)

    async def stream(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The same run, a piece for each event; a whole one where none of the stream is of use."""
        messages = self._messages(prompt, said)
        events = self._transport.stream(messages, self._fields(said, n, sampled), budget)
        run = self._run(said, n)
        printed, came = Printed(run, holds=not sampled), False
        async with aclosing(pieces(events, run, prompt_length(prompt), printed)) as found:
            async for piece in found:
                came = came or bool(piece.positions) or piece.finish_reason is not None
                yield piece
        if run.lost_first:
            yield await self._forced(messages, said, budget)
        elif not came:
            yield beginning(await self.ask(prompt, said, min(n, LONGEST), budget))

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def _forced(self, messages: list[Turn], said: str, budget: Allowance) -> Draft:
        """The first position alone, with a whole character forced: that changes no logprob."""
        if self._letter is None or not self.capabilities.before_bias:
            raise UpstreamMalformed(
                "the upstream shows no candidates for a token inside a character, and there is no "
                "way round it: use its completions, or a model that needs none for this text"
            )
        fields = self._fields(said, 1, False) | {"logit_bias": {str(self._letter): _FORCE}}
        answer = await self._transport.complete(messages, fields, budget)
        positions = self._run(said, 1).read(only_choice(answer.body))
        if not positions:
            raise UpstreamMalformed("the upstream's answer shows no token")
        shown = tuple(replace(position, drafted=None) for position in positions)
        return Draft(shown, None, usage_of(answer.body, answer.calls))

    def _run(self, said: str, n: int) -> "ChatRun":
        return ChatRun(self._names, self._k, n, said, not self.capabilities.every_step_shown)

    def _messages(self, prompt: str | Chat, said: str) -> list[Turn]:
        """The chat, and behind it what the assistant has said so far."""
        if isinstance(prompt, str):
            raise ValueError("a chat API takes no plain prompt")
        turns: list[Turn] = [{"role": m.role, "content": m.content} for m in prompt.messages]
        form = self.capabilities.continues_by
        if form == "trailing message" and prompt.messages[-1].role == "assistant":
            raise BadRequest(
                "the last message is the assistant's, and this model's upstream would go on with "
                "it instead of answering: end with a message of another role",
                param="messages",
            )
        if said:
            turns.append({"role": "assistant", "content": said, **_MARKS.get(form, {})})
        return turns

    def _fields(self, said: str, n: int, sampled: bool) -> dict[str, Any]:
        fields = self._plain | {"max_tokens": n}
        if sampled:
            fields |= {"temperature": 1}
        return fields | (_FIELDS.get(self.capabilities.continues_by, {}) if said else {})


class ChatRun:
    """Reads a run from a whole answer or from the chunks of one.

    `said`: some servers repeat it before what is new. `loses`: the server shows nothing of tokens
    that end inside a character.
    """

    def __init__(
        self,
        names: Names,
        k: int,
        n: int,
        said: str = "",
        loses: bool = False,
    ) -> None:
        self.cut = False
        self._names = names
        self._k = k
        self._n = n
        self._said = said
        self._loses = loses
        self._drafted: list[Candidate | None] = []
        self._text = ""
        self._open = b""
        self._finish: str | None = None

    @property
    def lost_first(self) -> bool:
        """Whether something was generated, but nothing is known of the first position."""
        ended = self._finish == "stop" and not self.text
        return self._loses and not self._drafted and not ended

    def read(self, choice: Mapping[str, Any]) -> tuple[Position, ...]:
        """The next positions, up to the first that was not shown."""
        self._finish = finish_of(choice) or self._finish
        before, self._text = self.text, self._text + text_of(choice)
        entries = _entries(choice)
        if entries is None and self.text != before:
            self._miss()
        positions: list[Position] = []
        for entry in entries or ():
            over = self.cut or is_over(self._drafted, self._n)
            position = None if over else self._position(entry)
            if position is None:
                self.cut = True
                break
            positions.append(position)
            self._take(position.drafted)
        return tuple(positions)

    def finish(self, completion_tokens: int) -> str | None:
        """Why the upstream stopped, None where the run was cut or a position was lost."""
        if self.cut or self.lost_first:
            return None
        if not self._drafted and (self._finish != "stop" or self.text):
            raise UpstreamMalformed("the upstream's answer has no token")
        if self._loses and len(self._drafted) != completion_tokens:
            return None
        check_text(self._text, self._drafted, exact=False)
        return self._finish

    @property
    def text(self) -> str:
        """What is new in the text so far; "" while it may still repeat what was said."""
        if self._said.startswith(self._text):
            return ""
        return self._text.removeprefix(self._said)

    def _miss(self) -> None:
        """Text came without log-probabilities."""
        if not self._loses:
            raise UpstreamMalformed(
                "the upstream answers without log-probabilities of its tokens, so nothing can be "
                "steered: use a server or model that returns them, streamed too"
            )
        self.cut = bool(self._drafted)

    def _take(self, drafted: Candidate | None) -> None:
        self._drafted.append(drafted)
        self._open = b"" if drafted is None else pending(self._open + drafted.token)

    def _position(self, entry: Mapping[str, Any]) -> Position | None:
        """An entry's position, None where the server lost the ones before it."""
        listed = entry.get("top_logprobs")
        if not isinstance(listed, list) or not all(isinstance(item, dict) for item in listed):
            raise UpstreamMalformed("the upstream gives no top_logprobs for a token")
        drafted = self._names.of_entry(entry, self._open)
        if _spells_more(entry, listed, drafted):
            return None
        best = top(listed, self._k, _value, lambda item: _name(item) == _name(entry))
        shown = [self._names.of_entry(item, self._open) for item in best]
        return make_position(shown, usable(drafted), self._names.size)


def _entries(choice: Mapping[str, Any]) -> list[Mapping[str, Any]] | None:
    """The choice's tokens with their log-probabilities, None where it has none."""
    shown = choice.get("logprobs")
    entries = shown.get("content") if isinstance(shown, dict) else None
    if entries is None:
        return None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UpstreamMalformed("the upstream's log-probabilities are not in chat's shape")
    return entries


def _value(item: Mapping[str, Any]) -> float:
    return nats(item.get("logprob"))


def _name(item: Mapping[str, Any]) -> tuple[Any, ...]:
    return item.get("id"), item.get("token"), item.get("bytes")


def _spells_more(
    entry: Mapping[str, Any], listed: list[Mapping[str, Any]], drafted: Candidate | None
) -> bool:
    """Whether a token named by its id spells tokens before it, too: those were not shown."""
    if type(entry.get("id")) is not int or drafted is None or drafted.special is not None:
        return False
    same = (item for item in listed if item.get("id") == entry["id"])
    own = next((given(item.get("bytes")) for item in same), drafted.token)
    return given(entry.get("bytes")) != own
