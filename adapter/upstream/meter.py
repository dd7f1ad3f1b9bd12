"""Meter: a streamed answer is paid step by step, while it comes."""

from collections.abc import Mapping
from typing import Any

from adapter.candidates import Usage
from adapter.upstream.answers import consumed, tokens_shown
from adapter.upstream.upstream import Call

STEP = 16
"""Tokens reserved at a time."""


class Meter:
    """Counts what comes of up to `most` tokens, of which the call has reserved the first ones.

    Until the upstream says what it consumed, and wherever the stream is cut, what came and one
    chunk more counts as spent, as far as so much was asked for: the upstream works on until it
    notices.
    """

    def __init__(self, call: Call, prompt_tokens: int, most: int) -> None:
        self._call = call
        self._prompt_tokens = prompt_tokens
        self._most = most
        self._received = 0
        self._chunk = 1
        self._said = False

    def read(self, event: Mapping[str, Any]) -> None:
        """An event came."""
        count = tokens_shown(event)
        self._received += count
        self._chunk = max(self._chunk, count)
        usage = consumed(event)
        self._said = usage is not None and _is_last(event)
        if usage is not None and self._said:
            self._call.settle(usage)
        else:
            self._estimate(max(self._received, min(self._received + self._chunk, self._most)))

    async def go_on(self) -> None:
        """Pay for what may come next. Raises what the budget raises, where that cannot be had."""
        needed = self._received + self._chunk
        if self._call.tokens < min(needed, self._most):
            longest = min(needed + STEP - 1, self._most)
            await self._call.more(longest, least=min(needed, self._most))

    def end(self) -> None:
        """The upstream ended the stream by itself."""
        if not self._said:
            self._estimate(self._received)

    def _estimate(self, completion_tokens: int) -> None:
        usage = Usage(prompt_tokens=self._prompt_tokens, completion_tokens=completion_tokens)
        self._call.settle(usage, estimated=True)


def _is_last(event: Mapping[str, Any]) -> bool:
    """Whether the usage it tells is that of the whole stream: some servers tell it all along."""
    choices = event.get("choices")
    return not choices or (isinstance(choices[0], dict) and bool(choices[0].get("finish_reason")))
