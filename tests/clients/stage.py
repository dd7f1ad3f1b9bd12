"""The service that clients are tried on: the demo's models, with a key and without."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapter.adapter import Adapter
from adapter.demo.engine import Engine, EngineOptions
from adapter.demo.stage import STEERED, WEIGHTS, settings_for
from adapter.service.app import create_app
from adapter.settings import Settings
from tests.support.keys import KEY, key_settings
from tests.support.scripted_adapter import ScriptedAdapter, end_step, ending, step
from tests.support.sockets import serving

MODEL = STEERED
NAMES = (MODEL, "gpt-3.5-turbo-instruct", "gpt-6-astra", "model")
"""The last ones are asked for by the official client's own tests."""

PONG = (step("PO"), step("NG"), end_step(), ending())
_TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@dataclass(frozen=True)
class Stage:
    """Base URLs of the same service, asking for `KEY` and asking for none.

    `pong` says PONG to everything, which the demo's models cannot be brought to.
    """

    guarded: str
    open: str
    pong: str


@contextmanager
def stage() -> Iterator[Stage]:
    """Engine and services, from entering to leaving."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Engine(WEIGHTS / "hosted.gguf", EngineOptions(alias="hosted", threads=1)) as engine,
    ):
        template = Path(folder) / "chat.jinja"
        template.write_text(_TEMPLATE)
        model = settings_for(engine.base_url)["models"][MODEL]
        model["templates"] = {"upstream": str(template)}
        plain = {"models": dict.fromkeys(NAMES, model), "limits": {"max_tokens": 4096}}
        key = key_settings("clients", KEY).model_dump()
        with (
            _service(plain | {"keys": [key]}) as guarded,
            _service(plain) as unguarded,
            serving(create_app(ScriptedAdapter(PONG), Settings.model_validate(plain))) as pong,
        ):
            yield Stage(guarded, unguarded, f"{pong}/v1")


@contextmanager
def _service(data: dict) -> Iterator[str]:
    settings = Settings.model_validate(data)
    with serving(create_app(Adapter.from_settings(settings), settings)) as address:
        yield f"{address}/v1"
