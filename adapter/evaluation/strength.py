"""Strength: a fitted α written into a settings file, all else in it left as it is."""

import os
from pathlib import Path

import yaml

from adapter.errors import SettingsError


def write_alpha(path: Path, model: str, alpha: float) -> None:
    """Set `alpha` of a model of a settings file: comments, order and layout stay.

    Raises SettingsError with the line to write, where it cannot be done without touching more.
    """
    try:
        text = path.read_text(encoding="utf-8")
        written = _with_alpha(text, model, alpha)
        if written is None or not _alone(text, written, model, alpha):
            raise SettingsError(
                f"{path} is not laid out so that α can be written into it alone: write "
                f"alpha: {alpha:g} below models.{model} yourself"
            )
        beside = path.with_name(f"{path.name}.new")
        beside.write_text(written, encoding="utf-8")
        beside.chmod(path.stat().st_mode)
        os.replace(beside, path)
    except OSError as error:
        raise SettingsError(f"{path}: cannot be written: {error.strerror}") from error


def _with_alpha(text: str, model: str, alpha: float) -> str | None:
    """The text with a new value, or a new line in front of the model's first key."""
    node = yaml.compose(text, yaml.SafeLoader)
    for key in ("models", model):
        node = _value(node, key)
    if not isinstance(node, yaml.MappingNode) or not node.value:
        return None
    known = _value(node, "alpha")
    if known is not None:
        return text[: known.start_mark.index] + f"{alpha:g}" + text[known.end_mark.index :]
    first = node.value[0][0].start_mark
    if node.flow_style:
        return text[: first.index] + f'"alpha": {alpha:g}, ' + text[first.index :]
    return text[: first.index] + f"alpha: {alpha:g}\n{' ' * first.column}" + text[first.index :]


def _value(node: yaml.Node | None, name: str) -> yaml.Node | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    return next((value for key, value in node.value if key.value == name), None)


def _alone(text: str, written: str, model: str, alpha: float) -> bool:
    """Whether the model's α is all that has changed."""
    before, after = yaml.safe_load(text), yaml.safe_load(written)
    models = before["models"]  # those that share an anchor are one object: none is changed here
    changed = models | {model: models[model] | {"alpha": float(f"{alpha:g}")}}
    return bool(after == before | {"models": changed})
