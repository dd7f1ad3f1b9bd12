"""adapter: an OpenAI-compatible service that steers hosted language models by proxy-tuning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapter import errors
    from adapter.answers import Answer, Choice, Score
    from adapter.client import AsyncClient, Client
    from adapter.local import Adapter
    from adapter.settings import Settings, load_settings

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Answer",
    "AsyncClient",
    "Choice",
    "Client",
    "Score",
    "Settings",
    "__version__",
    "errors",
    "load_settings",
]

_HOMES = {
    "Adapter": "adapter.local",
    "Answer": "adapter.answers",
    "AsyncClient": "adapter.client",
    "Choice": "adapter.answers",
    "Client": "adapter.client",
    "Score": "adapter.answers",
    "Settings": "adapter.settings",
    "load_settings": "adapter.settings",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when first used: `import adapter` alone loads nothing heavy."""
    if name == "errors":
        return import_module("adapter.errors")
    if name not in _HOMES:
        raise AttributeError(f"module 'adapter' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
