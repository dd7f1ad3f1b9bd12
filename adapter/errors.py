"""Every failure the product can report, as one tree.

AdapterError
├── SettingsError            the settings are wrong; nothing was started
├── PairError                the pair's files are missing, unsafe or do not fit together
├── TuningError              the corpus or the folder of an expert cannot be used
├── BadRequest               400, the client can mend it
│   ├── UnsupportedParameter     a field that would change the output and is not supported
│   ├── ContextTooLong           prompt and answer do not fit a model's context window
│   └── ModelNotFound            404
├── BudgetExceeded           429, a cap on upstream calls is reached
│   └── MoneyExceeded            402, a cap on money is reached
├── UpstreamError            502, the hosted model's side failed
│   ├── UpstreamUnavailable      503, no connection or the server is not ready
│   ├── UpstreamTimeout          504
│   ├── UpstreamRefused          the upstream answered 4xx: wrong key, unknown model, bad field
│   └── UpstreamMalformed        an answer without usable log-probabilities
└── ServiceError             what the Python client raises for an error answer of the service
"""

from typing import Any, ClassVar


class AdapterError(Exception):
    """Root of all errors; `str(error)` says what was wrong and what to do."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None

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


class ModelNotFound(BadRequest):
    """No model of that name is configured."""

    status = 404
    code = "model_not_found"


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


class ServiceError(AdapterError):
    """An error answer of the service, as the Python client raises it."""

    def __init__(self, message: str, *, status: int, code: str | None = None) -> None:
        super().__init__(message)
        self.http_status = status
        self.error_code = code
