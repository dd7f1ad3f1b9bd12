"""Finding out what an upstream shows, in at most 25 cheap calls."""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from adapter.errors import AdapterError, BudgetExceeded, SettingsError, UpstreamUnavailable
from adapter.prefix import Prefix
from adapter.request import Chat, Message
from adapter.upstream.asking import Asking, Prompt
from adapter.upstream.dialects import Form, connect, connect_chat
from adapter.upstream.profiles import profile_of
from adapter.upstream.records import UNTRIED, Api, Finding, Record, filled
from adapter.upstream.refusals import refusal
from adapter.upstream.sightings import Entry, Name, Seen, Sighting, apart
from adapter.upstream.transport import Endpoint
from adapter.upstream.upstream import Allowance, Call, Upstream
from tokenizer_maps.vocabulary import Vocabulary

MOST_CALLS = 25
"""Calls a probe may make; 8 tokens or fewer are asked for in each."""

SAME = 1e-3
"""Nats up to which two log-probabilities are the same: engines differ by 1e-5 to 1e-4."""
_REPEATS = 3
_K = 5
_LADDER = (1, 2, 3, 4, 5, 8, 10, 15, 20, 32, 50, 64, 100, 128, 200, 256, 500, 1000)
_SMALLEST = 256
"""Tokens that any vocabulary has: vLLM's engine dies of being asked for more than there are."""
_ALLOWED = re.compile(r"(?:max\w*\s+allowed|at most|less than or equal to|<=?)\D{0,10}(\d{1,6})")
_TEXTS = ("The capital of France is", "1, 2, 3, 4,", "import")
"""The first one whose next tokens all come with candidates is asked about throughout."""
_EMOJI = "🙂 日本語 🙂 日本"
_ALIKE = 0.05
"""Nats up to which two positions are the same, where providers round and batch."""
_REPLACED = "\ufffd".encode()
_PARTS_ALIKE = "parts of characters cannot be told apart"
_STREAMED = 3
_LOST = "steps without text are left out"
_NOT_RAW = "at temperature 0 its log-probabilities are not the model's"
_AS_IDS = {"return_tokens_as_token_ids": True}

Question = Callable[[], Awaitable[None]]


async def probe(
    endpoint: Endpoint,
    budget: Allowance,
    vocabulary: Vocabulary | None = None,
    chat_only: bool = False,
) -> Record:
    """The record of the model at an endpoint; an empty model name means the only one there.

    Its chat API is looked at where its completions show nothing, or where nothing else is wanted.
    With its vocabulary the questions go deeper, and the dialect to use is tried. Stops asking where
    the budget is used up. Raises UpstreamError where nobody answers or lets us in, SettingsError
    where the model has to be named.
    """
    asking = Asking(endpoint, budget)
    try:
        return await _Probe(asking, vocabulary, chat_only).run()
    finally:
        await asking.close()


class _Probe:
    """One run of questions; what they find out is in `findings`."""

    def __init__(
        self, asking: Asking, vocabulary: Vocabulary | None, chat_only: bool = False
    ) -> None:
        self._asking = asking
        self._vocabulary = vocabulary
        self._chat_only = chat_only
        self._findings: dict[str, Finding] = {}
        self._extra: dict[str, Any] = {}
        self._models: list[dict[str, Any]] = []
        self._base = Seen(0)
        self._text = _TEXTS[0]
        self._deep: Sighting | None = None
        self._greedy_is_raw = True
        self._forced: int | None = None
        self._forced_text = ""

    async def run(self) -> Record:
        await self._look_around()
        self._base = await self._first()
        if self._base.shape is None:
            self._found("logprobs", False)
            return self._record(None, "it gives no log-probabilities of its candidates")
        self._found("logprobs", True)
        if self._asking.chat:
            self._found("limited_by", self._asking.limited_by)
        await self._go_through(self._questions())
        api, reason = self._dialect()
        if api is not None and self._vocabulary is not None:
            reason = await self._tried(api, self._vocabulary)
            api = None if reason else api
        return self._record(api, reason)

    async def _go_through(self, questions: Sequence[Question]) -> None:
        """All questions, or as many as the budget allows.

        A server may hang up on one that it finds strange, but not on two.
        """
        hung_up = False
        for question in questions:
            try:
                await question()
            except BudgetExceeded:
                return
            except UpstreamUnavailable:
                if hung_up:
                    raise
                hung_up = True

    def _questions(self) -> Sequence[Question]:
        """In the order of what matters most, if the budget ends."""
        common = (self._by_id, self._limit, self._force, self._temperature)
        if self._asking.chat:
            return (
                *common, self._prefill, self._fragment, self._stream, self._unknown, self._end,
                self._several, self._repeat, self._window,
            )  # fmt: skip
        return (
            *common, self._prompt_as_ids, self._chosen, self._end,
            self._fragment, self._stream, self._echo, self._unknown, self._several, self._repeat,
            self._window,
        )  # fmt: skip

    def _found(self, field: str, value: Any, note: str = "") -> None:
        self._findings[field] = Finding(value, "measured", note)

    async def _ask(self, prompt: Prompt, k: int = _K, **fields: Any) -> Seen:
        return await self._asking.ask(prompt, k, **self._extra, **fields)

    async def _look_around(self) -> None:
        """The models the server lists, which tell who it is and sometimes its window."""
        told = (await self._asking.get("models")).get("data")
        self._models = [m for m in told if isinstance(m, dict)] if isinstance(told, list) else []
        if self._asking.endpoint.model:
            return
        names = [str(m.get("id")) for m in self._models]
        if len(names) != 1:
            raise SettingsError(f"name the model with --model; it lists: {', '.join(names[:20])}")
        self._asking.endpoint = replace(self._asking.endpoint, model=names[0])

    async def _first(self) -> Seen:
        """An answer of the completions endpoint, or where that shows nothing, of chat."""
        self._asking.chat = self._chat_only
        seen = await self._shown_whole()
        if seen.shape is not None:
            return seen
        if self._chat_only and not seen.ok:
            raise self._refused(seen)
        if self._chat_only:
            return seen
        if seen.status in (401, 403):
            raise self._refused(seen)
        self._asking.chat = True
        chat = await self._shown_whole()
        if not (seen.ok or chat.ok):
            raise self._refused(seen if chat.status in (404, 405) else chat)
        return chat if chat.ok else seen

    async def _shown_whole(self) -> Seen:
        """The answer to a first text; to the next one where steps of it are lost."""
        seen = Seen(0)
        for text in _TEXTS:
            seen = await self._ask(text, max_tokens=2)
            if seen.status in (400, 422):
                seen = await self._ask(text, 1, max_tokens=2)
            self._text = text
            if not seen.ok or len(seen.steps) >= (seen.completion_tokens or 0):
                break
        return seen

    def _refused(self, seen: Seen) -> AdapterError:
        endpoint = self._asking.endpoint
        where = f"the upstream at {endpoint.host}"
        return refusal(
            seen.status, seen.error, where=where, model=endpoint.model, key_name=endpoint.key_name
        )

    async def _by_id(self) -> None:
        """What names tokens; from here on ids are asked for where that helps."""
        if self._base.steps[0].taken.id is None:
            seen = await self._ask(self._text, **_AS_IDS)
            if seen.shape is not None and seen.steps[0].taken.id is not None:
                self._extra = dict(_AS_IDS)
                self._base = seen

    async def _limit(self) -> None:
        """The most candidates granted, of those tried; a listing shorter than asked is a limit."""
        known = len(self._vocabulary.tokens) if self._vocabulary else _SMALLEST
        top = min(known, _LADDER[-1])
        ladder = (*(k for k in _LADDER if k < top), top)
        granted, refused, tries = 0, len(ladder), 0
        at = len(ladder) - 1
        hint: int | None = None
        while granted < refused and tries < 6:
            k, tries = hint or ladder[at], tries + 1
            seen = await self._ask(self._text, k)
            if seen.shape is not None:
                self._deep = seen.steps[0]
                shown = await self._granted(k, len(seen.steps[0].listed))
                self._found("k_limit", shown, UNTRIED if shown == top else "")
                if hint is not None or shown < k or at == len(ladder) - 1:
                    break
                granted = at + 1
            else:
                refused, hint = at, _hint(seen.error, below=k)
            at = (granted + refused) // 2
        self._name()

    async def _granted(self, k: int, listed: int) -> int:
        """The limit that a listing of an answer to k shows.

        Where names collapse, a listing is shorter whatever is asked for: that is no limit.
        """
        if listed >= k:
            return k
        again = await self._ask(self._text, listed)
        collapsed = bool(again.steps) and len(again.steps[0].listed) < listed
        return k if collapsed else listed

    def _name(self) -> None:
        entries = [e for s in (*self._base.steps, *([self._deep] if self._deep else []))
                   for e in (s.taken, *s.listed)]  # fmt: skip
        if all(e.id is not None for e in entries):
            self._found("named_by", "ids")
        elif any(e.spelt for e in entries) and not any(map(_is_replaced, entries)):
            self._found("named_by", "bytes")
        else:
            self._found("named_by", "text", _PARTS_ALIKE)

    async def _temperature(self) -> None:
        """The same position at 0, 1 and 2: log-probabilities are the model's only at 1."""
        cool = self._base.steps[0]
        # A token that is whole text is taken: otherwise the step may be lost.
        safe: dict[str, Any] = (
            {"logit_bias": self._bias(self._forced)} if self._value("before_bias") else {}
        )
        plain, hot = [await self._ask(self._text, temperature=t, **safe) for t in (1, 2)]
        if not (plain.steps and hot.steps):
            return
        gap, greedy = apart(plain.steps[0], hot.steps[0]), apart(cool, plain.steps[0])
        if gap is not None:
            self._found("before_temperature", gap < SAME)
        self._greedy_is_raw = greedy is None or greedy < SAME

    async def _prompt_as_ids(self) -> None:
        """A prompt of ids; with the vocabulary its answer has to be that of the text."""
        seen = await self._ask(self._prompt_ids(), max_tokens=2)
        if not seen.ok:
            self._found("continues", "text")
        else:
            gap = None
            if self._vocabulary and seen.steps:
                gap = apart(seen.steps[0], self._base.steps[0])
            differs = gap is not None and gap > _ALIKE
            self._found("continues", "ids", "the text has other ids there" if differs else "")
        self._found("continues_by", "prompt")

    def _prompt_ids(self) -> list[int]:
        if self._vocabulary is None:
            named = [e.id for e in self._base.steps[0].listed if e.id is not None]
            return named[:3] or [100, 101, 102]
        start = list(self._vocabulary.start)
        return start + list(self._vocabulary.encode(self._text.encode()))

    async def _force(self) -> None:
        """A token of whole text behind the best two, forced by a bias, with those two listed."""
        listed = (self._deep or self._base.steps[0]).listed
        likely = [e for e in sorted(listed, key=lambda e: -e.logprob)[2:] if self._is_whole(e)]
        # Chat templates strip spaces from what is to be gone on with.
        unspaced = (e for e in likely if self._spelling(e).strip() == self._spelling(e))
        entry = next((e for e in (*unspaced, *likely)), None)
        token = None if entry is None else self._id_of(entry)
        if entry is None or token is None:
            return
        seen = await self._ask(self._text, 2, logit_bias=self._bias(token))
        if not seen.steps or seen.steps[0].taken.name != entry.name:
            return
        step = seen.steps[0]
        before = abs(step.taken.logprob - entry.logprob) < SAME
        self._forced = token
        self._forced_text = self._spelling(entry).decode("utf-8", "ignore")
        self._found("before_bias", before)
        self._found("appends", len(step.listed) > 2)
        self._found("scoring", "forced" if before else None)
        self._found("text_scoring", "forced" if before else "none")

    def _bias(self, *tokens: int | None) -> dict[str, int]:
        return {str(token): 100 for token in tokens}

    def _id_of(self, entry: Entry) -> int | None:
        if entry.id is not None or self._vocabulary is None:
            return entry.id
        spelt = self._spelling(entry)
        return self._vocabulary.id_of(spelt) if spelt else None

    def _spelling(self, entry: Entry) -> bytes:
        """A token's bytes; b"" where they are not known."""
        words = self._vocabulary.tokens if self._vocabulary else ()
        if entry.id is not None and entry.id < len(words):
            return words[entry.id]
        if entry.spelt is not None:
            return entry.spelt
        return b"" if entry.id is not None else entry.text.encode("utf-8", "replace")

    def _is_whole(self, entry: Entry) -> bool:
        """Whether a token is printable text, as far as that is known."""
        spelt = self._spelling(entry)
        unknown = not spelt and entry.spelt is None and self._vocabulary is None
        return unknown or (spelt.isascii() and spelt.strip().isalnum())

    async def _chosen(self) -> None:
        """Log-probabilities asked for by id, of tokens that k = 1 does not list."""
        step = self._deep or self._base.steps[0]
        wanted = [e for e in step.listed if e.id is not None][-2:]
        if not self._extra or len(wanted) < 2:
            return
        seen = await self._ask(self._text, 1, logprob_token_ids=[e.id for e in wanted])
        found = [seen.steps[0].of(e.name) for e in wanted] if seen.steps else []
        if found and all(_close(f, e.logprob) for f, e in zip(found, wanted, strict=True)):
            self._found("scoring", "chosen")

    async def _end(self) -> None:
        """The end of the text, forced where a bias works and its token is known."""
        ends: set[Name] = set(self._vocabulary.end if self._vocabulary else ())
        listed = self._deep.listed if self._deep else ()
        if any(e.id in ends for e in listed):
            self._found("end_visible", True, "listed among the candidates")
        if self._forced is None or not ends:
            return
        bias = self._bias(*self._vocabulary.end) if self._vocabulary else {}
        seen = await self._ask(self._text, logit_bias=bias, max_tokens=2)
        if seen.finish == "stop":
            shown = any(s.taken.id in ends or self._id_of(s.taken) in ends for s in seen.steps)
            note = "" if shown else "hidden when it is taken"
            self._found("end_visible", shown or "end_visible" in self._findings, note)

    async def _fragment(self) -> None:
        """Whether a token inside a character comes with its candidates."""
        part = self._part()
        if part is not None and self._forced is not None:
            seen = await self._ask(_EMOJI, logit_bias=self._bias(part))
            if seen.ok:
                self._found("every_step_shown", seen.shape is not None, "a part of one was forced")
            if seen.steps and not self._is_part(seen.steps[0].taken, part):
                self._found("named_by", "text", _PARTS_ALIKE)
            return
        seen = await self._ask(_EMOJI, max_tokens=8)
        if seen.completion_tokens and len(seen.steps) < seen.completion_tokens:
            self._found("every_step_shown", False, "tokens that end inside a character are lost")

    def _is_part(self, entry: Entry, part: int) -> bool:
        words = self._vocabulary.tokens if self._vocabulary else ()
        return entry.id == part or (part < len(words) and entry.spelt == words[part])

    def _part(self) -> int | None:
        """A token that ends inside a character."""
        tokens = enumerate(self._vocabulary.tokens if self._vocabulary else ())
        listed = self._deep.listed if self._deep else ()
        spelt = [*tokens, *((e.id, e.spelt) for e in listed)]
        return next((i for i, s in spelt if i is not None and s and 0xC2 <= s[-1] <= 0xF4), None)

    async def _echo(self) -> None:
        """A prompt's own log-probabilities: the first has none."""
        seen = await self._ask(self._text, 1, echo=True)
        made = seen.completion_tokens or 1
        if seen.shape is None or len(seen.steps) <= made:
            return
        whole = seen.prompt_tokens is None or len(seen.steps) >= seen.prompt_tokens + made
        self._found("text_scoring", "echo", "" if whole else "the generated token is left out")

    async def _repeat(self) -> None:
        """The same call again; whether usage tells what was cached."""
        again = [await self._ask(self._text) for _ in range(_REPEATS)]
        gaps = [apart(self._base.steps[0], seen.steps[0]) for seen in again if seen.steps]
        known = [gap for gap in gaps if gap is not None]
        if known:
            self._found("repeatable", max(known), f"largest difference of {len(known)} repeats")
        self._found("reports_cached", any(seen.cached_tokens is not None for seen in again))

    async def _stream(self) -> None:
        """Proxies drop chunks without text: parts of characters are forced, where all are shown.

        Not where they are named by text, though: llama-cpp-python is the worse for it.
        """
        part, fields = self._part(), dict[str, Any](self._extra, max_tokens=_STREAMED)
        told = self._value("every_step_shown") and self._value("named_by") != "text"
        if told and self._forced is not None and part is not None:
            fields["logit_bias"] = self._bias(part)
        events = await self._asking.stream(self._text, _K, **fields)
        steps = sum(len(event.steps) for event in events if event.shape is not None)
        ended = any(event.finish == "length" for event in events)
        lost = bool(steps) and ended and "logit_bias" in fields and steps < _STREAMED
        self._found("streamed_logprobs", steps > 0 and not lost, _LOST if lost else "")

    async def _unknown(self) -> None:
        seen = await self._ask(self._text, adapter_probe=True)
        self._found("unknown_fields", "ignored" if seen.ok else "refused")

    async def _several(self) -> None:
        """Two choices of one request, hot enough to differ, where runs may be drawn at all."""
        if self._value("continues") == "text" or self._value("every_step_shown") is False:
            return
        seen = await self._ask(self._text, temperature=2, max_tokens=8, n=2)
        differ, once = len(set(seen.texts)) == 2, seen.prompt_tokens == self._base.prompt_tokens
        note = "" if once else "the prompt is read for each choice"
        note = note if differ else "" if len(seen.texts) < 2 else "two choices were the same"
        self._found("several", differ and once, note)

    async def _window(self) -> None:
        listed = [m for m in self._models if m.get("id") == self._asking.endpoint.model]
        window = _window_of((listed or self._models or [{}])[0])
        if window is None and self._owner == "llamacpp":
            told = await self._asking.get("props", root=True)
            window = _window_of(told.get("default_generation_settings") or {})
        if window is not None:
            self._found("context", window, "as the server says")

    async def _prefill(self) -> None:
        """Chat: whether a last message of the assistant is gone on with, in one of three forms.

        The test is a number: behind its own first words the model has to say again what it then
        went on with.
        """
        user = {"role": "user", "content": self._text}
        begun = await self._begun([user])
        if begun is None:
            return
        said, goes_on = begun
        for form, mark, fields in _PREFILLS:
            last = {"role": "assistant", "content": said} | mark
            seen = await self._spelt([user, last], max_tokens=2, **fields)
            if seen.steps and _alike(seen.steps[0], goes_on):
                self._found("continues", "text", _repeats(seen.text, said))
                self._found("continues_by", form)
                return
        self._found("continues", "none", "a last message of the assistant is not gone on with")

    async def _begun(self, messages: Any) -> tuple[str, Sighting] | None:
        """The beginning of an answer and the position behind it; None where that tells nothing."""
        if self._forced_text and self._value("before_bias"):
            bias = self._bias(self._forced)
            seen = await self._spelt(messages, max_tokens=2, logit_bias=bias)
        else:
            seen = await self._spelt(messages, max_tokens=8)
        for at in range(1, len(seen.steps)):
            spelt = [self._spelling(step.taken) for step in seen.steps[:at]]
            said = b"".join(spelt)
            tells = not _alike(seen.steps[0], seen.steps[at])
            plain = all(spelt) and said.isascii() and said.strip() == said
            if tells and plain and self._own(spelt):
                return said.decode(), seen.steps[at]
        return None

    async def _spelt(self, messages: Any, **fields: Any) -> Seen:
        """An answer whose tokens can be spelt: by the vocabulary, or as the server prints them."""
        extra = self._extra if self._vocabulary else {}
        return await self._asking.ask(messages, _K, **extra, **fields)

    def _own(self, spelt: Sequence[bytes]) -> bool:
        """Whether a text is made of the tokens that the tokenizer makes of it, if it is known."""
        if self._vocabulary is None:
            return True
        tokens = self._vocabulary.tokens
        return [tokens[i] for i in self._vocabulary.encode(b"".join(spelt))] == list(spelt)

    def _dialect(self) -> tuple[Api | None, str]:
        """The dialect of ours that fits what was found, or why none does."""
        if self._asking.chat:
            return ("chat", "") if self._greedy_is_raw else (None, _NOT_RAW)
        if self._value("continues") is None:
            return None, "whether it takes prompts of ids could not be found out"
        if self._base.shape == "content":
            named = self._value("named_by") == "ids"
            return ("llama.cpp", "") if named else (None, "it names tokens without their ids")
        if not self._greedy_is_raw:
            return None, _NOT_RAW
        return "completions", ""

    async def _tried(self, api: Api, words: Vocabulary) -> str:
        """Why a first position cannot be had with the dialect itself; "" where it can."""
        upstream, prefix = self._dialects(api, words)
        counted = _Counted(self._asking)
        try:
            await upstream.draft(prefix, 2, counted)
        except BudgetExceeded:
            return ""
        except AdapterError as error:
            return str(error)
        finally:
            await upstream.close()
        return ""

    def _dialects(self, api: Api, words: Vocabulary) -> tuple[Upstream, Prefix]:
        """The upstream in a dialect, and the text asked about as a prefix of it."""
        endpoint = self._asking.endpoint
        if api == "chat":
            chat = Chat((Message("user", self._text),))
            return connect_chat(endpoint, self._record(api, ""), words, _K), Prefix.of(chat)
        form: Form = "text" if self._value("continues") == "text" else "ids"
        upstream = connect(endpoint, api=api, vocabulary=words, top_logprobs=_K, form=form)
        return upstream, Prefix.of(self._text if form == "text" else self._prompt_ids())

    @property
    def _owner(self) -> str | None:
        return next((m["owned_by"] for m in self._models if m.get("owned_by")), None)

    def _value(self, field: str) -> Any:
        found = self._findings.get(field)
        return None if found is None else found.value

    def _record(self, api: Api | None, reason: str) -> Record:
        endpoint = self._asking.endpoint
        profile = profile_of(endpoint.base_url, self._owner, self._asking.chat)
        return Record(
            base_url=endpoint.base_url,
            model=endpoint.model,
            api=api,
            reason=reason,
            calls=self._asking.calls,
            profile=None if profile is None else profile.name,
            findings=filled(self._findings, profile),
            chat_only=self._chat_only,
        )


class _Counted:
    """The probe's budget, with what others take of it counted among its calls."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking

    @asynccontextmanager
    async def call(self, prompt_tokens: int, output_tokens: int) -> AsyncGenerator[Call, None]:
        async with self._asking.budget.call(prompt_tokens, output_tokens) as call:
            self._asking.calls += 1
            yield call


_PREFILLS: Sequence[tuple[str, dict[str, Any], dict[str, Any]]] = (
    ("trailing message", {}, {}),
    (
        "continue_final_message",
        {},
        {"continue_final_message": True, "add_generation_prompt": False},
    ),
    ("prefix", {"prefix": True}, {}),
)


def _hint(error: Any, below: int) -> int | None:
    """The limit that a refusal names."""
    found = _ALLOWED.search(str(error))
    return int(found[1]) if found and 0 < int(found[1]) < below else None


def _is_replaced(entry: Entry) -> bool:
    """Whether a part of a character is told by what was printed for it."""
    return entry.id is None and (not entry.spelt or _REPLACED in entry.spelt)


def _alike(one: Sighting, other: Sighting) -> bool:
    """Whether two positions list the same tokens at about the same odds."""
    named = [e for e in one.listed if not e.vague]
    common = sum(other.of(e.name) is not None for e in named)
    gap = apart(one, other)
    return gap is not None and gap < _ALIKE and 2 * common > len(named)


def _repeats(text: str, said: str) -> str:
    return "the answer repeats what it goes on from" if text.startswith(said) else ""


def _close(one: float | None, other: float) -> bool:
    return one is not None and abs(one - other) < SAME


def _window_of(told: dict[str, Any]) -> int | None:
    meta = told.get("meta") if isinstance(told.get("meta"), dict) else {}
    names = ("max_model_len", "n_ctx", "max_input_tokens", "context_length", "context_window")
    values = [source.get(name) for source in (told, meta or {}) for name in names]
    return next((v for v in values if type(v) is int), None)
