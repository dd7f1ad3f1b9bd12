"""Every failure the product can report, as one tree.

AdapterError
├── SettingsError            the settings are wrong; nothing was started
├── PairError                the pair's files are missing, unsafe or do not fit together
├── TuningError              the corpus or the folder of an expert cannot be used
├── BadRequest               400, the client can mend it
│   ├── UnsupportedParameter     a field that would change the output and is not supported
│   ├── ContextTooLong           prompt and answer do not fit a model's context window
│   ├── UpstreamCannotContinue   the upstream takes no beginning of an answer to go on from
│   └── ModelNotFound            404
├── InvalidKey               401, no API key or one that is not known
├── LimitReached             429, too many requests at once or too often; a later one is welcome
├── BudgetExceeded           429, a cap on upstream calls is reached
│   └── MoneyExceeded            402, a cap on money is reached
├── UpstreamError            502, the hosted model's side failed
│   ├── UpstreamUnavailable      503, no connection or the server is not ready
│   ├── UpstreamTimeout          504
│   ├── UpstreamRefused          the upstream answered 4xx: wrong key, unknown model, bad field
│   └── UpstreamMalformed        an answer without usable log-probabilities
├── ServiceStopping          503, the service was told to stop while it answered
└── ServiceError             an error answer to the Python client that is none of the above
"""

from typing import Any, ClassVar


class AdapterError(Exception):
    """Root of all errors; `str(error)` says what was wrong and what to do.

    `retry_after`: seconds after which asking again may help, if known.
    """

    status: int = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None
    retry_after: float | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape, all four keys always present."""
        error = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": error}


class SettingsError(AdapterError):
    """The settings file or environment is wrong; the message names the key."""

    code = "bad_settings"


class PairError(AdapterError):
    """The expert or anti-expert cannot be used."""

    code = "pair_unusable"


class TuningError(AdapterError):
    """A corpus cannot be learnt from, or the expert's folder belongs to another tuning."""


class BadRequest(AdapterError):
    """The request cannot be honoured as it stands."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_value"


class UnsupportedParameter(BadRequest):
    """A field that would change the output and is not supported."""

    code = "unsupported_parameter"


class ContextTooLong(BadRequest):
    """The prompt and the tokens asked for do not fit a context window."""

    code = "context_length_exceeded"


class UpstreamCannotContinue(BadRequest):
    """The answer left what the upstream said by itself, and it takes no beginning to go on from."""

    code = "upstream_cannot_continue"

    def __init__(self) -> None:
        super().__init__(
            "this upstream cannot go on from the beginning of an answer: the answer is exact up to "
            "and including the first token where steering departs from the upstream, and ends "
            "there; what works is choice mode (steering.choices), or max_tokens: 1"
        )


class ModelNotFound(BadRequest):
    """No model of that name is configured."""

    status = 404
    code = "model_not_found"


class InvalidKey(AdapterError):
    """The request carries no API key, or one that is not known here."""

    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"


class LimitReached(AdapterError):
    """Too many requests at once or too often; after `retry_after` seconds one may be taken."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BudgetExceeded(AdapterError):
    """A cap on upstream calls is reached before any token could be given."""

    status = 429
    type = "budget_exceeded"
    code = "budget_exceeded"


class MoneyExceeded(BudgetExceeded):
    """A cap on money is reached before any token could be given."""

    status = 402
    type = "insufficient_quota"


class UpstreamError(AdapterError):
    """The hosted model's side failed."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"


class UpstreamUnavailable(UpstreamError):
    """No connection to the upstream, or it is not ready; `retry_after` in seconds if known."""

    status = 503
    code = "upstream_unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UpstreamTimeout(UpstreamError):
    """The upstream did not answer in time."""

    status = 504
    code = "upstream_timeout"


class UpstreamRefused(UpstreamError):
    """The upstream refused our request: wrong key, unknown model, bad field."""

    code = "upstream_refused"


class UpstreamMalformed(UpstreamError):
    """The upstream answered without usable log-probabilities; nothing can be steered."""

    code = "upstream_malformed"


class ServiceStopping(AdapterError):
    """The service was told to stop, and this answer took too long to be waited for."""

    status = 503
    code = "service_stopping"
    retry_after = 1.0


class ServiceError(AdapterError):
    """What the Python client raises where no other class goes by the error's code."""

    def __init__(self, message: str, *, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
