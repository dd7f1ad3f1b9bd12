"""Facts: what the outcomes of a run depend on, each as a short text that can be compared."""

import hashlib
import json
from pathlib import Path
from typing import Any

from adapter.evaluation.suite import Suite
from adapter.settings import ModelSettings, Settings

_UPSTREAM = {"price", "timeout", "max_concurrency", "api_key_env"}
_MODEL = {"alpha", "lookahead", "weights", "pair", "upstream"}
_PAIR = {"device", "kv_memory", "experts", "antiexpert"}
"""What does not change an outcome, or is told apart by its files."""


def facts_of(suite: Suite, settings: Settings) -> dict[str, str]:
    """By name; strengths, limits and which systems are asked do not count: more can be asked."""
    facts = {}
    for task in suite.tasks:
        asked = task.model_dump(exclude={"limit", "data", "name"})
        facts[f"task {task.name}"] = _digest(asked)
        facts[f"data of {task.name}"] = _digest([_file(Path(path)) for path in task.data])
    for name in filter(None, (suite.model, suite.tuned)):
        facts |= _model(name, settings.models[name], name == suite.model)
    return facts


def _model(name: str, model: ModelSettings, steered: bool) -> dict[str, str]:
    upstream = model.upstream.model_dump(exclude=_UPSTREAM)
    facts = {f"models.{name}.upstream": _digest(upstream)}
    if not steered:
        return facts
    pair = model.pair
    facts[f"models.{name}"] = _digest(
        [model.model_dump(exclude=_MODEL), pair.model_dump(exclude=_PAIR)]
    )
    facts[f"weights of models.{name}"] = _digest(model.weights)
    facts[f"anti-expert of models.{name}"] = _weights(pair.antiexpert)
    facts |= {f"expert {key} of models.{name}": _weights(at) for key, at in pair.experts.items()}
    return facts


def _weights(source: str) -> str:
    """A directory by its weights, a hub name by itself."""
    folder = Path(source)
    if not folder.is_dir():
        return source
    return _digest([_file(path) for path in sorted(folder.glob("*.safetensors"))])


def _file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
