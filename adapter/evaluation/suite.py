"""Suite: one file that says what is asked, of which models, at which strengths."""

from pathlib import Path
from typing import Annotated, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from adapter.errors import SettingsError
from adapter.settings import Section, keys_of, problems

Kind = Literal["answers", "labels", "generation", "text"]
Alone = Literal["expert", "antiexpert"]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _file(value: str, info: ValidationInfo) -> str:
    path = ((info.context or {}).get("base", Path()) / Path(value).expanduser()).absolute()
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    return str(path)


File = Annotated[str, AfterValidator(_file)]


class Task(Section):
    """What is asked, and when an answer is right.

    `answers`: the likeliest of the answers as the upstream scores them, its log-probability
    `normalise`d (mean of its tokens, sum, or a byte). `labels`: the likeliest label (choice mode).
    `generation`: a greedy answer of at most `max_tokens`, up to one of `stop`, that is right by
    `match`; `shots` items of the data are shown first and not asked. `text`: bits per byte, read
    `window` tokens at a time. `limit`: so many items, by a fixed shuffle.
    """

    name: str = Field(min_length=1)
    kind: Kind
    reader: str
    data: Annotated[tuple[File, ...], BeforeValidator(_listed), Field(min_length=1)]
    template: str | None = None
    shots: int = Field(default=0, ge=0)
    normalise: Literal["mean", "sum", "bytes"] = "mean"
    match: Literal["exact", "normalised", "number"] = "normalised"
    max_tokens: int = Field(default=64, ge=1)
    stop: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    window: int = Field(default=512, ge=2)
    limit: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _meant(self) -> Self:
        only = {
            "shots": "generation",
            "match": "generation",
            "max_tokens": "generation",
            "stop": "generation",
            "normalise": "answers",
            "window": "text",
        }
        for key, kind in only.items():
            if key in self.model_fields_set and self.kind != kind:
                raise ValueError(f"{key} is for kind: {kind}, and this is {self.kind}")
        return self

    @property
    def lower_is_better(self) -> bool:
        """Whether a small result is a good one."""
        return self.kind == "text"


class Suite(Section):
    """Tasks for a `model` of the settings: alone, adapted at each of `alphas`, beside others.

    `tuned` is another model of the settings, which is never steered. `alone`: which of the pair are
    asked by themselves. `weights`: mixtures of the experts that are asked beside the model's own.
    `validation`: the task whose best strength is the fitted one; the first, if none is named.
    """

    model: str
    tuned: str | None = None
    alphas: tuple[float, ...] = (1.0,)
    alone: tuple[Alone, ...] = get_args(Alone)
    weights: tuple[dict[str, float], ...] = ()
    validation: str | None = None
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]

    @field_validator("alphas")
    @classmethod
    def _strengths(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if 0.0 in alphas:
            raise ValueError("0 is the hosted model alone, which is always asked; leave it out")
        return tuple(sorted(set(alphas)))

    @model_validator(mode="after")
    def _validated(self) -> Self:
        names = [task.name for task in self.tasks]
        if self.validation is not None and self.validation not in names:
            raise ValueError(f"validation: there is no task '{self.validation}'")
        return self

    @property
    def fitted_on(self) -> Task:
        """The task that decides the strength."""
        named = [task for task in self.tasks if task.name == self.validation]
        return (named or list(self.tasks))[0]

    @field_validator("tasks")
    @classmethod
    def _apart(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        if len({task.name for task in tasks}) < len(tasks):
            raise ValueError("two tasks have the same name")
        return tasks


def load_suite(path: Path) -> Suite:
    """The suite in a YAML file; relative paths in it are relative to the file.

    Raises SettingsError with one line for each problem.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise SettingsError(f"{where}: is not YAML") from error
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: must hold keys and values, such as model: and tasks:")
    try:
        return Suite.model_validate(data, context={"base": path.parent})
    except ValidationError as error:
        lines = problems(error, dict(keys_of(Suite)))
        raise SettingsError("\n".join(f"{path}: {line}" for line in lines)) from None
