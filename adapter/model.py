"""Model: one name clients can ask for: an upstream, its vocabulary, a pair and their bridge."""

import asyncio
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from adapter.budget import Budget
from adapter.candidates import Candidate
from adapter.choosing import spellings
from adapter.decoding import Influence, Labels, Pace
from adapter.errors import BadRequest, ContextTooLong, SettingsError
from adapter.pair.pair import Pair
from adapter.pair.reader import ANTIEXPERT, Reader
from adapter.prefix import Prefix, Segment, Special
from adapter.price import Price
from adapter.request import Chat, Message, Prompt
from adapter.settings import UNKNOWN, ModelSettings, PairSettings, Settings, TemplateSettings
from adapter.templates import PLAIN, compile_template, encode, plain, render, segments_of, split
from adapter.upstream import Endpoint, Upstream, connect
from adapter.upstream.cached import CachedUpstream
from adapter.upstream.dialects import connect_known
from adapter.upstream.lexicon import Lexicon
from adapter.upstream.probe import MOST_CALLS, probe
from adapter.upstream.records import Record, assumed, load
from adapter.upstream.spelling import check_text, opening
from adapter.upstream.texts import TextUpstream
from adapter.upstream.unknown import Spellings, spelt_id
from cache import Cache, CacheError, Keys, open_cache
from tokenizer_maps.bridge import Bridge, Clamp, Context, IdentityBridge, make_bridge
from tokenizer_maps.errors import EncodingError, TokenizerMapError, VocabularyError
from tokenizer_maps.loading import load_vocabulary
from tokenizer_maps.vocabulary import Kind, Vocabulary
from tokenizer_maps.words import SpeltBridge, WordBridge

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Templates:
    """Jinja sources by reader; None means the reader's own or the common one.

    A plain prompt reaches the upstream as it is; the pair's templates take it as a user's turn.
    """

    upstream: str | None
    expert: str | None
    antiexpert: str | None


@contextmanager
def _readable() -> Iterator[None]:
    """What breaks a tokenizer down as BadRequest."""
    try:
        yield
    except EncodingError as error:
        raise BadRequest(str(error)) from error


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """All parts behind one model name; `pace` is what its drafts have shown so far.

    `vocabulary` is the upstream's, None where nobody knows it.
    """

    settings: ModelSettings
    upstream: CachedUpstream
    vocabulary: Vocabulary | None
    lexicon: Lexicon
    pair: Pair
    bridge: Bridge
    templates: Templates
    pace: Pace

    @_readable()
    def prefix(self, prompt: Prompt) -> Prefix:
        """The prompt as the upstream is sent it. Raises BadRequest."""
        if self.upstream.capabilities.chats:
            return Prefix.of(_chat(prompt, self.vocabulary))
        sent = self._text(prompt) if self._sends_text else self._ids(prompt)
        if not sent:
            raise BadRequest("the prompt is empty, and this model has no token to start from")
        return Prefix.of(sent)

    def prompt_tokens(self, prompt: Prompt, prefix: Prefix) -> int:
        """The prompt's length in the upstream's tokens; no fewer where nobody knows them."""
        if isinstance(prefix.prompt, str) and self.vocabulary and not isinstance(prompt, tuple):
            return len(encode(self._rendered(prompt), self.vocabulary))
        return prefix.length

    def check_bias(self, logit_bias: Mapping[int, float]) -> None:
        """Raises BadRequest where ids are named and mean nothing."""
        if logit_bias and self.vocabulary is None:
            raise BadRequest(
                "logit_bias names tokens by their ids, and this model's tokenizer is unknown",
                param="logit_bias",
            )

    @_readable()
    def labels(self, choices: Sequence[str]) -> Labels:
        """How each label is spelt upstream: by single tokens, or else by several each time.

        Raises BadRequest where a label cannot be spelt, or takes several tokens of an upstream
        that cannot go on behind the first.
        """
        labels = {label: self._paths(label) for label in choices}
        known = self.upstream.capabilities
        for label, paths in labels.items():
            if not paths:
                raise BadRequest(
                    f"choice {choices.index(label)} cannot be spelt in the upstream's vocabulary",
                    param="steering.choices",
                )
            if len(paths[0]) > 1 and known.continues == "none" and known.text_scoring != "echo":
                raise BadRequest(
                    f"choice {choices.index(label)} takes several of the upstream's tokens, and "
                    "this upstream cannot go on behind the first: use labels of one token, such "
                    "as letters",
                    param="steering.choices",
                )
        return labels

    def _paths(self, label: str) -> tuple[tuple[Candidate, ...], ...]:
        """The spellings of one token where there are any; they add up.

        In a vocabulary that nobody knows every label may be one token.
        """
        spelt, vocabulary = spellings(label), self.vocabulary
        if vocabulary is None:
            return tuple((Candidate(text, 0.0, spelt_id(text)),) for text in spelt)
        single = [(i,) for i in map(vocabulary.id_of, spelt) if i is not None]
        paths: Sequence[tuple[int, ...]] = single or [vocabulary.encode(s) for s in spelt]
        whole = [path for path in paths if vocabulary.decode(path) in spelt]
        return tuple(self.lexicon.of_ids(path) for path in whole)

    @_readable()
    def contexts(self, prompt: Prompt, experts: Sequence[str]) -> dict[str, Context]:
        """The prompt as the named experts and the anti-expert read it. Raises BadRequest."""
        own = self.templates.expert
        expert = self._context(prompt, own)
        anti = self.templates.antiexpert
        contexts = dict.fromkeys(experts, expert)
        contexts[ANTIEXPERT] = expert if anti is None else self._context(prompt, anti)
        return contexts

    @_readable()
    def check_window(self, contexts: Mapping[str, Context], max_tokens: int) -> None:
        """Refuse what the pair cannot read, before any paid call.

        Raises BadRequest where there is nothing to read, ContextTooLong where it does not fit,
        unless the model's settings allow the context to be cut.
        """
        for context in set(contexts.values()):
            length = len(context.fixed) + len(self.pair.vocabulary.encode(context.prompt))
            if not length:
                raise BadRequest("the prompt is empty, and the pair has no token to start from")
            if not self._cuts_context and length + max_tokens > self.pair.window:
                raise ContextTooLong(
                    f"the prompt has {length} tokens for the pair and {max_tokens} may follow, "
                    f"but its context window is {self.pair.window} tokens; shorten either, "
                    "or have the operator set pair.context: tail"
                )

    def reader(self, contexts: Mapping[str, Context], weights: Mapping[str, float]) -> Reader:
        """The pair's reading of one choice."""
        fixed = contexts[ANTIEXPERT].fixed
        kinds = self.pair.vocabulary.kinds
        head = len(list(takewhile(lambda i: kinds[i] is Kind.SPECIAL, fixed)))
        return self.pair.reader(
            self.bridge, contexts, weights, head if self._cuts_context else None
        )

    def influence(self, alpha: float, reader: Reader | None) -> Influence:
        """What steers a choice: strength and reading beside the model's own settings."""
        identity = isinstance(self.bridge, IdentityBridge)
        return Influence(
            alpha=alpha,
            reader=reader,
            lexicon=self.lexicon,
            impute=self.settings.tail == "impute" and self.vocabulary is not None,
            expand=self.settings.expand,
            limit=math.inf if identity else self.settings.clamp.offset,
        )

    @property
    def price(self) -> Price | None:
        """What the upstream's tokens cost, None where the settings do not say."""
        return _price(self.settings)

    @property
    def _cuts_context(self) -> bool:
        return self.settings.pair.context == "tail"

    @property
    def _sends_text(self) -> bool:
        return self.upstream.capabilities.continues != "ids"

    @property
    def _words(self) -> Vocabulary:
        if self.vocabulary is None:
            raise RuntimeError("the upstream's vocabulary is unknown")
        return self.vocabulary

    def _text(self, prompt: Prompt) -> str:
        """A prompt as one text; the server itself puts its first token in front."""
        if isinstance(prompt, tuple):
            raise BadRequest(
                "this model's upstream takes prompts as text, not as token ids", param="prompt"
            )
        words = self.vocabulary
        segments = self._rendered(prompt)
        if words is not None and segments and isinstance(segments[0], Special):
            first = words.specials.get(segments[0].name)
            segments = segments[1:] if (first,) == words.start else segments
        return opening(segments, words)

    def _ids(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, tuple):
            return _checked(prompt, self._words)
        return encode(self._rendered(prompt), self._words)

    def _rendered(self, prompt: str | Chat) -> tuple[Segment, ...]:
        if isinstance(prompt, Chat):
            return render(self._chat_template(), prompt.messages, self.vocabulary)
        return plain(prompt)

    def _chat_template(self) -> str:
        """The upstream's rendering of a chat. Raises BadRequest where there is none."""
        own = None if self.vocabulary is None else self.vocabulary.chat_template
        source = self.templates.upstream or own
        if source is None:
            chats = self.upstream.capabilities.chats
            raise BadRequest(
                "the pair of this model has no chat template: have the operator set "
                "templates.expert"
                if chats
                else "this model has no chat template; use /v1/completions, or have the operator "
                "set templates.upstream",
                param="messages",
            )
        return source

    def _context(self, prompt: Prompt, template: str | None) -> Context:
        vocabulary = self.pair.vocabulary
        known = self.vocabulary
        same = known is not None and vocabulary.fingerprint == known.fingerprint
        if isinstance(prompt, tuple):
            if template is not None:
                raise BadRequest(
                    "a prompt of token ids cannot go through this model's templates; send text",
                    param="prompt",
                )
            if same:
                return Context(fixed=tuple(prompt), prompt=b"", generated=())
        return Context(*split(self._segments(prompt, template), vocabulary), generated=())

    def _segments(self, prompt: Prompt, template: str | None) -> tuple[Segment, ...]:
        """The prompt for the pair: through a template where there is one."""
        if isinstance(prompt, Chat):
            source = template or self.pair.vocabulary.chat_template or self._chat_template()
            return render(source, prompt.messages, self.pair.vocabulary)
        if isinstance(prompt, str):
            if template is None:
                return plain(prompt)
            return render(template, (Message("user", prompt),), self.pair.vocabulary)
        return segments_of(prompt, self._words)

    async def close(self) -> None:
        """Close the upstream's connections and end the pair's worker."""
        await self.upstream.close()
        self.pair.close()


def _chat(prompt: Prompt, vocabulary: Vocabulary | None) -> Chat:
    """A chat for an upstream that renders it by itself.

    Raises BadRequest for any other prompt, and where a message spells a special token.
    """
    if not isinstance(prompt, Chat):
        raise BadRequest(
            "this model is reached through a chat API, which takes no plain prompt: "
            "use /v1/chat/completions",
            param="prompt",
        )
    for message in prompt.messages:
        check_text(message.content, vocabulary, param="messages")
    return prompt


def _checked(ids: tuple[int, ...], vocabulary: Vocabulary) -> tuple[int, ...]:
    for i in ids:
        if not 0 <= i < len(vocabulary.kinds) or vocabulary.kinds[i] is Kind.NONE:
            raise BadRequest(f"the prompt holds id {i}, which is no token here", param="prompt")
    return ids


def open_prefix_cache(settings: Settings) -> Cache | None:
    """The cache that all models share. Raises SettingsError."""
    own = settings.cache
    try:
        return open_cache(own.url, own.size, own.ttl)
    except CacheError as error:
        raise SettingsError(f"cache.url: {error}") from None


def load_models(settings: Settings, cache: Cache | None = None) -> dict[str, Model]:
    """Every configured model; models with equal pair settings share one loaded pair.

    The cache stays the caller's to close. Raises SettingsError and PairError.
    """
    keys = Keys(settings.cache_secret())
    pairs: dict[str, Pair] = {}
    models = {}
    for name, model in settings.models.items():
        vocabulary = _vocabulary(name, model)
        connected = _connect(name, settings, vocabulary)
        upstream = CachedUpstream(connected, cache, keys)
        if upstream.capabilities.chats and model.templates.upstream is not None:
            raise SettingsError(
                f"models.{name}.templates.upstream: a chat API renders chats by itself; leave it "
                "out, or set api to completions"
            )
        spellings = Spellings()
        pair_key = model.pair.model_dump_json()
        pair = pairs[pair_key] = pairs.get(pair_key) or _load_pair(model.pair)
        models[name] = Model(
            settings=model,
            upstream=upstream,
            vocabulary=vocabulary,
            lexicon=_lexicon(connected, vocabulary, spellings),
            pair=pair,
            bridge=_bridge(name, settings, vocabulary, pair, spellings),
            templates=_templates(model.templates),
            pace=_pace(model),
        )
    return models


def _price(model: ModelSettings) -> Price | None:
    price = model.upstream.price
    if price is None:
        return None
    cached = price.input if price.cached is None else price.cached
    return Price(price.input, price.output, cached)


def _pace(model: ModelSettings) -> Pace:
    price, objective = _price(model), model.lookahead.objective
    return Pace(objective) if price is None else Pace(objective, price)


def _load_pair(pair: PairSettings) -> Pair:
    return Pair.load(
        pair.experts,
        pair.antiexpert,
        pair.device,
        pair.dtype,
        pair.revision,
        kv_memory=pair.kv_memory,
    )


def _vocabulary(name: str, model: ModelSettings) -> Vocabulary | None:
    if model.upstream.tokenizer == UNKNOWN:
        return None
    try:
        return load_vocabulary(model.upstream.tokenizer)
    except VocabularyError as error:
        raise SettingsError(f"models.{name}.upstream.tokenizer: {error}") from error


def endpoint_of(name: str, settings: Settings) -> Endpoint:
    """Where a model's upstream is, with its key. Raises SettingsError."""
    upstream = settings.models[name].upstream
    return Endpoint(
        base_url=upstream.base_url,
        model=upstream.model,
        api_key=settings.api_key(name),
        key_name=upstream.api_key_env or "api_key_env",
        timeout=upstream.timeout,
        max_concurrency=upstream.max_concurrency,
    )


def _connect(name: str, settings: Settings, vocabulary: Vocabulary | None) -> Upstream:
    upstream, endpoint = settings.models[name].upstream, endpoint_of(name, settings)
    k, form = upstream.top_logprobs, upstream.prefix
    if upstream.api == "chat":
        record = _chat_record(endpoint, settings.maps_directory.parent)
        return connect_known(endpoint, record, vocabulary=vocabulary, top_logprobs=k)
    if upstream.api != "auto":
        form = form or ("text" if vocabulary is None else "ids")
        return connect(endpoint, api=upstream.api, vocabulary=vocabulary, top_logprobs=k, form=form)
    record = _record(endpoint, settings.maps_directory.parent, vocabulary)
    return connect_known(endpoint, record, vocabulary=vocabulary, top_logprobs=k, form=form)


def _chat_record(endpoint: Endpoint, folder: Path) -> Record:
    """What is remembered of a chat API, else what is known of the provider."""
    record = load(folder, endpoint.base_url, endpoint.model, chat_only=True)
    record = assumed(endpoint.base_url, endpoint.model) if record is None else record
    if record.value("continues") is None:
        _log.warning(
            "api: chat: whether %s goes on from the beginning of an answer is not known, so every "
            "answer ends where steering departs from it: `adapter probe --chat` finds out",
            endpoint.host,
        )
    return record


def _lexicon(upstream: Upstream, vocabulary: Vocabulary | None, spellings: Spellings) -> Lexicon:
    spelling = upstream.spelling if isinstance(upstream, TextUpstream) else None
    return Lexicon(vocabulary, spelling, spellings if vocabulary is None else None)


def _record(endpoint: Endpoint, folder: Path, vocabulary: Vocabulary | None) -> Record:
    """What is remembered of an upstream, or what a probe finds out now. Raises UpstreamError."""
    known = load(folder, endpoint.base_url, endpoint.model)
    if known is not None:
        return known
    # A warning, as logging is set up only later, and these calls may be paid for.
    _log.warning("api: auto: probing %s with at most %d calls", endpoint.host, MOST_CALLS)
    with ThreadPoolExecutor(1) as alone:  # the caller may already run an event loop
        found = alone.submit(asyncio.run, probe(endpoint, Budget(MOST_CALLS), vocabulary)).result()
    try:
        found.save(folder)
    except OSError as error:
        _log.warning("what was found out cannot be kept: %s", error.strerror)
    return found


def _bridge(
    name: str,
    settings: Settings,
    vocabulary: Vocabulary | None,
    pair: Pair,
    spellings: Spellings,
) -> Bridge:
    model = settings.models[name]
    clamp = Clamp(model.clamp.offset, model.clamp.end)
    try:
        if vocabulary is None:
            words = WordBridge.open(pair.vocabulary, pair.end, settings.maps_directory, clamp)
            return SpeltBridge(words, spellings)
        return make_bridge(
            model.bridge, vocabulary, pair.vocabulary, pair.end, settings.maps_directory, clamp
        )
    except TokenizerMapError as error:
        raise SettingsError(f"models.{name}.bridge: {error}") from error


def _templates(templates: TemplateSettings) -> Templates:
    return Templates(
        _template(templates.upstream), _template(templates.expert), _template(templates.antiexpert)
    )


def _template(source: str | None) -> str | None:
    """A template file's text, checked; `plain` is the rendering without roles."""
    if source is None:
        return None
    if source == "plain":
        return PLAIN
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"the template {source} cannot be read") from error
    compile_template(text)
    return text
