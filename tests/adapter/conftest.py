"""What many tests here stand in front of: scripted services, and a served tiny model.

The model's stack is imported by its fixtures alone: it takes seconds, and most tests need none.
"""

import pytest
import pytest_asyncio

from adapter.adapter import Adapter
from tests.support.openai_schema import fits_openais_schema, wire_faults
from tests.support.services import hello, serve, settings
from tokenizer_maps.loading import load_vocabulary

__all__ = ["fits_openais_schema", "hello", "serve", "settings", "wire_faults"]


@pytest.fixture(scope="module")
def server():
    """A transformers model behind /v1/completions."""
    from tests.support.model_server import model_server
    from tests.support.tiny import tiny

    with model_server(tiny().upstream) as server:
        yield server


@pytest.fixture(scope="module")
def vocabulary():
    """The served model's."""
    from tests.support.tiny import tiny

    return load_vocabulary(f"hf:{tiny().upstream}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def build(server):
    """Adapters in front of the server with other settings, closed at the end."""
    from tests.support.configured import settings_for

    built = []

    def make(**more):
        built.append(Adapter.from_settings(settings_for(server.base_url, **more)))
        return built[-1]

    yield make
    for adapter in built:
        await adapter.close()
