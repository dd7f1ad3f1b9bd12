"""Adapter in process, asked as a client asks a service."""

import json
import uuid
from abc import abstractmethod
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Self

from adapter import adapter as engine
from adapter.questions import Questions
from adapter.service.answering import begin
from adapter.service.render import CHAT, COMPLETIONS
from adapter.service.wire import read_chat, read_completion


class InProcess(Questions):
    """Asks an engine without a socket: the service's own reader and writer stand in between."""

    @property
    @abstractmethod
    def _engine(self) -> engine.Adapter:
        """What generates."""

    async def _lines(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[str, None]:
        chat = path.startswith("chat")
        read, dialect = (read_chat, CHAT) if chat else (read_completion, COMPLETIONS)
        asked = read(json.dumps(body).encode(), self._engine.limits)
        budget = self._engine.budget(asked.model, len(asked.requests))
        answering = await begin(self._engine, asked, budget, dialect, uuid.uuid4().hex)
        async with aclosing(await answering.events(asked.include_usage)) as events:
            try:
                async for event in events:
                    for line in event.decode().split("\n"):
                        yield line
            finally:
                budget.stop()


class Adapter(engine.Adapter, InProcess):
    """The configured models, ready to be asked; close it, or use it as a context."""

    @property
    def _engine(self) -> engine.Adapter:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
