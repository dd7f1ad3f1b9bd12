"""Whatever a service of these tests answers is held against OpenAI's schema."""

from tests.support.openai_schema import fits_openais_schema, wire_faults

__all__ = ["fits_openais_schema", "wire_faults"]
