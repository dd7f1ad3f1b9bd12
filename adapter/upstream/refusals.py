"""What an upstream's error status means, said without echoing text, ids or keys."""

import re
from collections.abc import Mapping
from typing import Any

from adapter.errors import AdapterError, ContextTooLong, UpstreamRefused

_CONTEXT = re.compile(
    r"maximum context length is (\d+) tokens|exceeds the available context size \((\d+) tokens\)"
)

# Servers quote the request in their messages (vLLM: "'input': …"), so only sentences known
# to carry nothing but numbers are passed on.
_HARMLESS = re.compile(
    r"Requested sample logprobs of \d+, which is greater than max allowed: \d+"
    r"|\"prompt\" must not be empty"
    r"|Prompt contains invalid tokens"
    r"|Token id \d+ is out of vocabulary"
    r"|does not support logprobs"
)
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,40}( [A-Za-z]{1,20})?")

_NEWER = "max_completion_tokens"

_ADVICE = {
    401: "it does not accept the key: check {key_name}",
    403: "the key may not use this model: check {key_name}",
    404: "it has no model {model!r} or no completions here: check `model` and `base_url`",
}


def refusal(status: int, body: Any, *, where: str, model: str, key_name: str) -> AdapterError:
    """The error for a 3xx or 4xx answer; `body` is the parsed JSON, or None."""
    if status < 400:
        return UpstreamRefused(f"{where} redirects ({status}): set `base_url` to where it points")
    error = _error(body)
    size = _CONTEXT.search(_text(error, "message"))
    if size is not None:
        return ContextTooLong(
            f"prompt and answer do not fit the upstream's context window of "
            f"{size[1] or size[2]} tokens"
        )
    if out_of_quota(body):
        return UpstreamRefused(f"{where} answered {status}: the account's quota is used up")
    advice = _ADVICE.get(status, _own_words(error)).format(key_name=key_name, model=model)
    return UpstreamRefused(f"{where} answered {status}: {advice}")


def out_of_quota(body: Any) -> bool:
    """Whether a 429 means an empty account, which no waiting mends."""
    error = _error(body)
    return "insufficient_quota" in (_text(error, "code"), _text(error, "type"))


def _own_words(error: Mapping[str, Any]) -> str:
    if _text(error, "param") == "max_tokens" and _NEWER in _text(error, "message"):
        return f"it takes {_NEWER} alone: `adapter probe --chat` finds that out and keeps it"
    harmless = _HARMLESS.search(_text(error, "message"))
    if harmless is not None:
        return harmless[0]
    named = [
        f"{key} {_text(error, key)}"
        for key in ("type", "param", "code")
        if _IDENTIFIER.fullmatch(_text(error, key))
    ]
    return ", ".join(named) or "it gives no reason that can be shown here"


def _error(body: Any) -> Mapping[str, Any]:
    """The error object, nested as OpenAI does it or flat."""
    if not isinstance(body, dict):
        return {}
    nested = body.get("error")
    return nested if isinstance(nested, dict) else body


def _text(error: Mapping[str, Any], key: str) -> str:
    value = error.get(key)
    return value if isinstance(value, str) else ""
