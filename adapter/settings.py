"""Settings: one YAML file and the environment as frozen values; the only reader of both."""

import difflib
import ipaddress
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from adapter.errors import SettingsError
from cache import CacheError, is_shared

_ENVIRONMENT = "ADAPTER_"
UNKNOWN = "unknown"
"""The tokenizer of an upstream that nobody knows."""

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_BYTES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}

MOST_PER_MINUTE = 100_000
"""Requests a key's rate may allow: the time of each is kept for a minute."""


def _amount(units: Mapping[str, float]) -> BeforeValidator:
    """Reads a number with an optional unit as a plain number."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", value)
        if found is None or found.group(2) not in ("", *units):
            raise ValueError(f"must be a number with a unit of {', '.join(units)}")
        return float(found.group(1)) * units.get(found.group(2), 1)

    return BeforeValidator(read)


def _base(info: ValidationInfo) -> Path:
    return cast("Path", (info.context or {}).get("base", Path()))


def _absolute(path: str, info: ValidationInfo) -> Path:
    return (_base(info) / Path(path).expanduser()).absolute()


def _file(value: str | None, info: ValidationInfo) -> str | None:
    if value is None or (value == "plain" and info.field_name == "antiexpert"):
        return value
    path = _absolute(value, info)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return str(path)


def _directory_or_name(value: str, info: ValidationInfo) -> str:
    """An existing directory as an absolute path; anything else stays a hub name."""
    path = _absolute(value, info)
    return str(path) if path.is_dir() else value


def _tokenizer(value: str, info: ValidationInfo) -> str:
    if value == UNKNOWN:
        return value
    kind, _, name = value.partition(":")
    if kind not in ("hf", "tiktoken", "sentencepiece", "gguf") or not name:
        raise ValueError("must be hf:PATH, tiktoken:NAME, sentencepiece:PATH, gguf:PATH or unknown")
    if kind == "tiktoken":
        return value
    path = _absolute(name, info)
    if not path.exists():
        raise ValueError(f"there is no file or directory {path}")
    return f"{kind}:{path}"


def _variable(value: str | None) -> str | None:
    """The name of a variable; the message does not repeat what may be a key."""
    if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("must be the name of an environment variable, never a key itself")
    return value


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL that starts with http:// or https://")
    if parts.username or parts.password:
        raise ValueError("must not carry a user or password; name a variable in api_key_env")
    return value.rstrip("/")


def _cache_url(value: str, info: ValidationInfo) -> str:
    """A cache's address, a file's from the root."""
    try:
        is_shared(value)
    except CacheError as error:
        raise ValueError(str(error)) from None
    kind, slashes, file = value.partition(":///")
    return f"{kind}{slashes}{_absolute(file, info)}" if kind == "sqlite" else value


def _increasing(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError("must be [lowest, highest]")
    return value


def _digest(value: str) -> str:
    """A SHA-256 digest in hexadecimal, in small letters."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", value):
        raise ValueError("must be 64 hexadecimal digits; `adapter key` prints a key and its digest")
    return value.lower()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


Duration = Annotated[float, _amount(_SECONDS), Field(gt=0)]
Size = Annotated[int, _amount(_BYTES), Field(gt=0)]
TemplateFile = Annotated[str | None, AfterValidator(_file)]
DirectoryOrName = Annotated[str, Field(min_length=1), AfterValidator(_directory_or_name)]
VariableName = Annotated[str | None, AfterValidator(_variable)]


class Section(BaseModel):
    """A frozen part of the settings; unknown keys and NaN are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PriceSettings(Section):
    """Money for a million tokens; `cached` for prompt tokens the upstream has read before."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(default=None, ge=0)


class UpstreamSettings(Section):
    """The hosted model; `max_concurrency` bounds the calls under way.

    `timeout` in seconds is for a whole answer, and for each wait for an event of a stream.

    `api: auto` takes what `adapter probe` found out, and probes at the start where nothing is kept.
    `chat` goes on from an answer as `adapter probe` found out, or as the provider is known to.
    `prefix`: how the prompt and what was generated are sent; by default as ids, unless the probe
    found that only text is taken. `tokenizer: unknown` sends text.
    """

    base_url: Annotated[str, AfterValidator(_url)]
    model: str = Field(min_length=1)
    api_key_env: VariableName = None
    api: Literal["auto", "completions", "chat", "llama.cpp"] = "completions"
    prefix: Literal["ids", "text"] | None = None
    tokenizer: Annotated[str, AfterValidator(_tokenizer)]
    top_logprobs: int = Field(default=20, ge=1)
    price: PriceSettings | None = None
    timeout: float = Field(default=30.0, gt=0)
    max_concurrency: int = Field(default=64, ge=1)

    @model_validator(mode="after")
    def _sendable(self) -> Self:
        if self.tokenizer == UNKNOWN and self.prefix == "ids":
            raise ValueError("tokenizer: unknown has no ids to send; leave out prefix: ids")
        return self


class PairSettings(Section):
    """Expert and anti-expert; directories are absolute, anything else is a hub name.

    `kv_memory`: bytes (4GB) for what all of them have read; by default 2 GB, on an accelerator half
    of what is free.
    """

    experts: dict[str, DirectoryOrName] = Field(min_length=1)
    antiexpert: DirectoryOrName
    device: str = "auto"
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    context: Literal["refuse", "tail"] = "refuse"
    revision: str | None = None
    kv_memory: Size | None = None


class ClampSettings(Section):
    """The largest offset the bridge may give, in nats: of a token, and of END."""

    offset: float = Field(default=10.0, gt=0)
    end: float = Field(default=2.0, gt=0)


class LookaheadSettings(Section):
    """How many tokens one upstream call asks for; `auto` minimises what a kept token costs."""

    n: Annotated[int, Field(ge=1)] | Literal["auto", "stream"] = "auto"
    objective: Literal["time", "money"] = "time"


class TemplateSettings(Section):
    """Jinja files that replace a model's own chat template; absolute paths."""

    upstream: TemplateFile = None
    expert: TemplateFile = None
    antiexpert: TemplateFile = None


class ModelSettings(Section):
    """One name clients can ask for; `weights` holds every expert of the pair.

    `expand`: how many hidden tokens a step may have scored by the upstream, which costs calls.
    """

    upstream: UpstreamSettings
    pair: PairSettings
    alpha: float = 1.0
    weights: dict[str, float] = Field(default={}, validate_default=True)
    bridge: Literal["auto", "identity", "fast", "exact"] = "auto"
    clamp: ClampSettings = ClampSettings()
    lookahead: LookaheadSettings = LookaheadSettings()
    tail: Literal["impute", "zero"] = "impute"
    expand: int = Field(default=0, ge=0, le=128)
    templates: TemplateSettings = TemplateSettings()

    @model_validator(mode="after")
    def _bridged(self) -> Self:
        if self.upstream.tokenizer == UNKNOWN and self.bridge != "auto":
            raise ValueError(f"bridge: {self.bridge} needs to know upstream.tokenizer")
        return self

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.lookahead.objective == "money" and self.upstream.price is None:
            raise ValueError("lookahead.objective: money needs upstream.price")
        return self

    @field_validator("weights")
    @classmethod
    def _complete(cls, weights: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        """Experts without a weight get an equal part of 1."""
        pair: PairSettings | None = info.data.get("pair")
        if pair is None:
            return weights
        for name in weights:
            if name not in pair.experts:
                raise ValueError(f"there is no expert '{name}'; {_nearest(name, pair.experts)}")
        return {name: weights.get(name, 1.0 / len(pair.experts)) for name in pair.experts}


class CacheSettings(Section):
    """The prefix cache; `ttl` in seconds (written 90s, 15m, 12h, 7d), `size` in bytes (256MB).

    `url`: memory://, sqlite:///FILE, redis://…, rediss://… or none; it may hold a password.
    """

    url: Annotated[str, AfterValidator(_cache_url), Field(repr=False)] = "memory://"
    ttl: Duration = 7 * 86400.0
    size: Size = 256 * 10**6
    secret_env: VariableName = None

    @model_validator(mode="after")
    def _secret_where_shared(self) -> Self:
        if is_shared(self.url) and self.secret_env is None:
            raise ValueError(
                "secret_env is missing: entries that outlive the process have keys made with a "
                "secret; name a variable that holds one (such as from `openssl rand -hex 32`), "
                "the same for all replicas"
            )
        return self


class LimitSettings(Section):
    """What one request may ask for and spend, and what all of a day (UTC) may spend.

    Money is in the currency of the prices; `calls_per_request` counts for each prompt.
    `forced_scoring`: whether `echo` with `logprobs` may take a call a token or more, where the
    upstream cannot score a text in one. `echo_tokens` of a prompt are scored at most where they are
    steered: the pair then reads its whole vocabulary behind each of them.
    """

    alpha: Annotated[tuple[float, float], AfterValidator(_increasing)] = (0.0, 4.0)
    max_tokens: int = Field(default=1024, ge=1)
    top_logprobs: int = Field(default=20, ge=0)
    calls_per_request: int = Field(default=512, ge=1)
    forced_scoring: bool = False
    echo_tokens: int = Field(default=4096, ge=1)
    money_per_request: float | None = Field(default=None, gt=0)
    money_per_day: float | None = Field(default=None, gt=0)


class KeySettings(Section):
    """Who may ask: `sha256` is the hex digest of a key; `adapter key` makes both.

    Cache entries are shared by the keys of one `tenant`, which is the key's own name where none is
    given. `per_minute` requests in any minute and `concurrency` at once hold in each process,
    `money_per_day` (UTC) for all replicas.
    """

    name: str = Field(min_length=1)
    sha256: Annotated[str, AfterValidator(_digest), Field(repr=False)]
    tenant: Annotated[str, Field(min_length=1)] = Field(
        default_factory=lambda others: others.get("name", "")
    )
    per_minute: int | None = Field(default=None, ge=1, le=MOST_PER_MINUTE)
    concurrency: int | None = Field(default=None, ge=1)
    money_per_day: float | None = Field(default=None, gt=0)


class ServiceSettings(Section):
    """Where the service listens; without keys only on loopback, unless `insecure`.

    `max_concurrency` requests are answered at once, more are refused. `metrics_port` serves
    Prometheus' metrics on the same host, to whoever asks.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    max_concurrency: int = Field(default=64, ge=1)
    insecure: bool = False


class LogSettings(Section):
    """How much is logged, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"


class Settings(Section):
    """Everything an operator can set; see `load_settings`."""

    models: dict[str, ModelSettings] = Field(min_length=1)
    cache: CacheSettings = CacheSettings()
    keys: tuple[KeySettings, ...] = ()
    limits: LimitSettings = LimitSettings()
    service: ServiceSettings = ServiceSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        low, high = self.limits.alpha
        for name, model in self.models.items():
            weights = {f"weights.{k}": v for k, v in model.weights.items()}
            for key, value in {"alpha": model.alpha, **weights}.items():
                if not low <= value <= high:
                    raise ValueError(
                        f"models.{name}.{key}: {value} is outside limits.alpha, {low} to {high}"
                    )
        return self

    @field_validator("keys")
    @classmethod
    def _apart(cls, keys: tuple[KeySettings, ...]) -> tuple[KeySettings, ...]:
        if len({key.name for key in keys}) < len(keys):
            raise ValueError("two keys have the same name")
        if len({key.sha256 for key in keys}) < len(keys):
            raise ValueError("two keys have the same sha256")
        return keys

    @model_validator(mode="after")
    def _guarded(self) -> Self:
        host, insecure = self.service.host, self.service.insecure
        if not (insecure or self.keys or _is_loopback(host)):
            raise ValueError(
                f"service: host '{host}' lets others in and there are no keys; "
                "use 127.0.0.1, set keys, or set service.insecure: true"
            )
        return self

    @model_validator(mode="after")
    def _priced(self) -> Self:
        for key in self._money_caps():
            for name, model in self.models.items():
                if model.upstream.price is None:
                    raise ValueError(f"{key}: models.{name}.upstream has no price")
        return self

    def _money_caps(self) -> Iterator[str]:
        """The keys of all caps on money that are set."""
        for name in ("money_per_request", "money_per_day"):
            if getattr(self.limits, name) is not None:
                yield f"limits.{name}"
        for number, key in enumerate(self.keys):
            if key.money_per_day is not None:
                yield f"keys.{number}.money_per_day"

    @property
    def daily_money(self) -> bool:
        """Whether anything is capped for a day: replicas share that."""
        return any(key.endswith(".money_per_day") for key in self._money_caps())

    @property
    def maps_directory(self) -> Path:
        """Where built token maps are kept between starts."""
        return maps_directory()

    def api_key(self, model: str) -> str | None:
        """The upstream key of a model, read now and kept nowhere; None where none is named.

        Raises SettingsError where the named variable is not set.
        """
        variable = self.models[model].upstream.api_key_env
        return _secret(variable, f"models.{model}.upstream.api_key_env") if variable else None

    def cache_secret(self) -> bytes | None:
        """What cache keys are made with, if it is named. Raises SettingsError as `api_key`."""
        variable = self.cache.secret_env
        return _secret(variable, "cache.secret_env").encode() if variable else None


def _secret(variable: str, key: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise SettingsError(f"{key}: the variable {variable} is not set")
    return value


def maps_directory() -> Path:
    """Where built token maps are kept: in the user's cache."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "adapter" / "maps"


def load_settings(
    path: Path | None, overrides: Mapping[tuple[str, ...], object] | None = None
) -> Settings:
    """Settings from a YAML file, then the environment, then `overrides`; the last one wins.

    `overrides` maps key paths, such as ("service", "port"), to values. Relative paths are
    relative to the file, without a file to the working directory. Raises SettingsError with one
    line for each problem.
    """
    data = {} if path is None else _read(path)
    variables = {k: v for k, v in os.environ.items() if k.startswith(_ENVIRONMENT)}
    known = {name: variables.pop(name) for name in _VARIABLES if name in variables}
    for name, text in known.items():
        key, annotation = _VARIABLES[name]
        nested = get_origin(annotation) in (dict, tuple)
        _put(data, key, _from_json(name, text) if nested else text)
    for key, value in (overrides or {}).items():
        _put(data, key, value)
    try:
        base = Path() if path is None else path.parent
        settings = Settings.model_validate(data, context={"base": base})
    except ValidationError as error:
        raise SettingsError("\n".join(problems(error, _KEYS))) from None
    _refuse_unknown(variables, settings)
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise SettingsError(f"{where}: {error.problem}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: is not YAML") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: must hold keys and values, beginning with models:")
    return data


def _put(data: dict[str, Any], key: tuple[str, ...], value: object) -> None:
    """Set a value by its path; below something that is no section nothing is set."""
    for part in key[:-1]:
        inner = data.get(part)
        if inner is None:
            inner = data[part] = {}
        if not isinstance(inner, dict):
            return  # validation names it
        data = inner
    data[key[-1]] = value


def _from_json(variable: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{variable}: is not JSON") from error


def keys_of(
    section: type[BaseModel], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key path below a section with its type; `*` stands for a name the user chooses."""
    for name, field in section.model_fields.items():
        here, inner = (*path, name), field.annotation
        yield here, inner
        if get_origin(inner) is dict:
            here, inner = (*here, "*"), get_args(inner)[1]
        elif get_origin(inner) is tuple:
            here, inner = (*here, "*"), get_args(inner)[0]
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys_of(inner, here)


_KEYS = dict(keys_of(Settings))
_VARIABLES = {
    _ENVIRONMENT + "__".join(key).upper(): (key, annotation)
    for key, annotation in _KEYS.items()
    if key == ("models",)
    or not ("*" in key or (isinstance(annotation, type) and issubclass(annotation, BaseModel)))
}
"""Environment variables by name: every single value outside `models`, and `models` as JSON."""


def problems(error: ValidationError, keys: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """One readable line for each; values are not repeated, they may be secrets.

    `keys` are all key paths that there are, as `keys_of` gives them.
    """
    known = tuple(keys)
    for one in error.errors():
        loc, message = one["loc"], one["msg"].removeprefix("Value error, ")
        if one["type"] == "extra_forbidden":
            siblings = [k[-1] for k in known if len(k) == len(loc) and _same_parent(k, loc)]
            message = f"unknown key; {_nearest(str(loc[-1]), siblings)}"
        where = ".".join(str(part) for part in loc)
        yield f"{where}: {message}" if where else message


def _same_parent(key: tuple[str, ...], loc: tuple[int | str, ...]) -> bool:
    return all(a in ("*", b) for a, b in zip(key[:-1], loc[:-1], strict=True))


def _refuse_unknown(variables: Mapping[str, str], settings: Settings) -> None:
    """A variable of ours that sets nothing is a spelling mistake, unless the settings name it."""
    named = {m.upstream.api_key_env for m in settings.models.values()}
    named.add(settings.cache.secret_env)
    unknown = sorted(set(variables) - named)
    if unknown:
        lines = [f"{name}: unknown variable; {_nearest(name, _VARIABLES)}" for name in unknown]
        raise SettingsError("\n".join(lines))


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(names)}"
