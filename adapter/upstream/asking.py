"""The probe's own questions to an endpoint: each one call, none of them twice for its answer."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from adapter.errors import UpstreamTimeout, UpstreamUnavailable
from adapter.upstream.answers import parsed
from adapter.upstream.events import payloads
from adapter.upstream.profiles import always_sent
from adapter.upstream.retries import Sleep
from adapter.upstream.sightings import Seen, see, see_stream
from adapter.upstream.transport import MAX_TOKENS, Endpoint, limited
from adapter.upstream.upstream import Allowance

Prompt = str | Sequence[int] | list[dict[str, str]]
_PROMPT = 64
"""Tokens a question has at most, give or take."""

_NEWER = "max_completion_tokens"

_WAITS = (0.5, 2.0)
"""Seconds to wait where a server is loading or overloaded; each further try is a call."""


class Asking:
    """One endpoint asked over plain HTTP, so that every status and field can be looked at.

    `chat` says which of the two endpoints takes the questions; `limited_by` turns to the newer name
    of `max_tokens` where a chat API refuses the old one. All methods raise
    UpstreamUnavailable, UpstreamTimeout and what the budget raises.
    """

    def __init__(
        self, endpoint: Endpoint, budget: Allowance, *, sleep: Sleep = asyncio.sleep
    ) -> None:
        key = endpoint.api_key
        self.endpoint = endpoint
        self.budget = budget
        self.chat = False
        self.limited_by = MAX_TOKENS
        self.calls = 0
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=endpoint.timeout,
            headers={} if key is None else {"authorization": f"Bearer {key}"},
        )

    async def ask(self, prompt: Prompt, k: int, **fields: Any) -> Seen:
        """The answer to a prompt, or to a chat's messages, with k candidates a step."""
        response = await self._post(self._body(prompt, k, fields))
        seen = see(response.status_code, parsed(response.content))
        if self.limited_by == MAX_TOKENS and self._refuses_limit(seen):
            self.limited_by = _NEWER
            return await self.ask(prompt, k, **fields)
        return seen

    async def stream(self, prompt: Prompt, k: int, **fields: Any) -> tuple[Seen, ...]:
        """The events of a streamed answer; none where it is refused."""
        response = await self._post(self._body(prompt, k, fields | {"stream": True}))
        if response.status_code != 200:
            return ()
        return see_stream([data async for data in payloads(response.aiter_bytes())])

    async def get(self, path: str, *, root: bool = False) -> Mapping[str, Any]:
        """What a side endpoint tells, `root`: beside the /v1; {} where it tells nothing."""
        base = self.endpoint.base_url.removesuffix("/v1") if root else self.endpoint.base_url
        response = await self._send("GET", f"{base}/{path}", None)
        told = parsed(response.content) if response.status_code == 200 else None
        return told if isinstance(told, dict) else {}

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def _refuses_limit(self, seen: Seen) -> bool:
        return self.chat and seen.status in (400, 422) and _NEWER in str(seen.error)

    def _body(self, prompt: Any, k: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        plain: dict[str, Any] = {"model": self.endpoint.model, "max_tokens": 1, "temperature": 0}
        if not self.chat:
            return {**plain, "prompt": prompt, "logprobs": k, **fields}
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        plain |= {"messages": messages, "logprobs": True, "top_logprobs": k, **fields}
        return {**limited(plain, self.limited_by), **always_sent(self.endpoint.base_url)}

    async def _post(self, body: Mapping[str, Any]) -> httpx.Response:
        path = "chat/completions" if self.chat else "completions"
        return await self._send("POST", f"{self.endpoint.base_url}/{path}", body)

    async def _send(self, method: str, url: str, body: Mapping[str, Any] | None) -> httpx.Response:
        """Waits for who is busy; anything else a server answers is its answer."""
        for wait in (0.0, *_WAITS):
            await self._sleep(wait)
            response = await self._once(method, url, body)
            if response.status_code not in (429, 502, 503, 504):
                return response
        raise UpstreamUnavailable(
            f"the upstream at {self.endpoint.host} is overloaded or not ready: try again later"
        )

    async def _once(self, method: str, url: str, body: Mapping[str, Any] | None) -> httpx.Response:
        try:
            async with self.budget.call(_PROMPT, 1):
                self.calls += 1
                return await self._http.request(method, url, json=body)
        except httpx.TimeoutException:
            raise UpstreamTimeout(
                f"no answer from the upstream at {self.endpoint.host} within "
                f"{self.endpoint.timeout:g} s"
            ) from None
        except httpx.HTTPError:
            raise UpstreamUnavailable(
                f"no connection to the upstream at {self.endpoint.host}, or it broke off: "
                "is the server running, and is the URL right (with its /v1)?"
            ) from None
