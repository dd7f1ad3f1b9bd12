"""Run: a suite asked from settings, into a folder of its own."""

import asyncio
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from adapter.adapter import Adapter
from adapter.evaluation.evaluate import Watch, evaluate, items_of, systems_of
from adapter.evaluation.facts import facts_of
from adapter.evaluation.fitting import Fit, best_alpha, cross_fitted
from adapter.evaluation.outcomes import Outcome
from adapter.evaluation.plots import plots
from adapter.evaluation.replies import Strength, System
from adapter.evaluation.report import TaskInfo, report
from adapter.evaluation.store import Store
from adapter.evaluation.suite import Suite
from adapter.settings import Settings

REPORT = "report.md"


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a suite: the outcomes of what was asked of it, the groups of items by task."""

    suite: Suite
    outcomes: tuple[Outcome, ...]
    groups: Mapping[str, Mapping[str, str]]

    def adapted(self, task: str) -> list[Outcome]:
        """A task's outcomes with the model's own weights, at all strengths."""
        return [one for one in self.outcomes if (one.task, one.system) == (task, "adapted")]

    def fits(self) -> dict[str, Fit]:
        """Every task's cross-fitted strength, where it has items enough."""
        found = {}
        for task in self.suite.tasks:
            try:
                found[task.name] = cross_fitted(
                    self.adapted(task.name), self.groups[task.name], task.lower_is_better
                )
            except ValueError:
                continue
        return found

    def alpha(self) -> float:
        """The strength that did best on the task that decides it. Raises ValueError for none."""
        task = self.suite.fitted_on
        return best_alpha(self.adapted(task.name), task.lower_is_better)

    def tell(self, folder: Path, settings: Settings, fits: Mapping[str, Fit]) -> Path:
        """Write the report and its plots. Raises SettingsError without matplotlib."""
        tasks = [TaskInfo(task.name, task.kind, task.lower_is_better) for task in self.suite.tasks]
        drawn = plots(tasks, self.outcomes, folder, fits)
        path = folder / REPORT
        about = _about(self.suite, settings)
        path.write_text(report(tasks, self.outcomes, fits, about, drawn), encoding="utf-8")
        return path


async def run(
    suite: Suite, settings: Settings, folder: Path, limit: int | None, watch: Watch
) -> Run:
    """Ask all that was not asked before. Raises AdapterError kinds; what is kept by then stays."""
    adapter = await asyncio.to_thread(Adapter.from_settings, _needed(suite, settings))
    try:
        systems, fits = systems_of(suite, adapter)
        asked = [(task, items_of(task, fits, limit)) for task in suite.tasks]
        with Store(folder, await asyncio.to_thread(facts_of, suite, settings)) as store:
            await evaluate(systems, asked, store, watch)
            groups = {task.name: {i.name: i.group for i in items} for task, items in asked}
            own = (one for one in store.outcomes if _asked(one, systems, groups))
            return Run(suite, tuple(own), groups)
    finally:
        await adapter.close()


def _needed(suite: Suite, settings: Settings) -> Settings:
    """Without the models that nobody asks, which need not even be there to be loaded."""
    named = {suite.model, suite.tuned or suite.model}
    if not named <= settings.models.keys():
        return settings  # who looks for the model says that there is none, and which there are
    kept = {name: model for name, model in settings.models.items() if name in named}
    return settings.model_copy(update={"models": kept})


def _asked(
    one: Outcome, systems: Sequence[System], groups: Mapping[str, Mapping[str, str]]
) -> bool:
    """Whether an outcome is of this run, not of an earlier one that asked more."""
    strength = Strength(one.system, one.alpha)
    known = any(strength in system.strengths for system in systems)
    return known and one.item in groups.get(one.task, {})


def _about(suite: Suite, settings: Settings) -> dict[str, str]:
    model = settings.models[suite.model]
    upstream, pair = model.upstream, model.pair
    found = {
        "Hosted": f"{upstream.model}, the top {upstream.top_logprobs} shown ({upstream.api})",
        "Expert" if len(pair.experts) == 1 else "Experts": _named(list(pair.experts.values())),
        "Anti-expert": _named([pair.antiexpert]),
        "Hidden tail": model.tail,
    }
    if suite.tuned is not None:
        found["Tuned"] = settings.models[suite.tuned].upstream.model
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return found | {"With": f"Python {platform.python_version()}, {packages}"}


def _named(sources: Sequence[str]) -> str:
    """Models by their last names: where they lie on this machine is of no account."""
    return ", ".join(Path(source).name for source in sources)
