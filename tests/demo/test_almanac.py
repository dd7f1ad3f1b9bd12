"""The fictional world: stable, and honest about what each training may see."""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from adapter.demo.almanac import (
    FIRST_YEAR,
    KINDS,
    NEW_YEAR,
    Fact,
    Question,
    World,
    questions,
    world,
)

EDITIONS = 3

# Prints a digest of everything that a training or a test could read.
DIGEST = """
import hashlib, json
from adapter.demo.almanac import World
world = World()
texts = [*world.first_training(2), *world.tuning(2)]
texts += [q.prompt + q.answer for q in world.questions_new() + world.questions_old()]
print(hashlib.sha256(json.dumps(texts).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def first_documents() -> list[str]:
    return list(world().first_training(EDITIONS))


@pytest.fixture(scope="module")
def tuning_documents() -> list[str]:
    return list(world().tuning(EDITIONS))


def test_same_seed_gives_same_world() -> None:
    first, second = World(7), World(7)
    assert first.facts == second.facts
    assert first.bulletins(NEW_YEAR) == second.bulletins(NEW_YEAR)
    assert first.questions_new() == second.questions_new()


def test_other_seed_gives_other_world() -> None:
    assert World(7).facts != World(8).facts


def test_same_texts_in_a_process_with_another_hash_seed() -> None:
    texts = [*world().first_training(2), *world().tuning(2)]
    texts += [q.prompt + q.answer for q in world().questions_new() + world().questions_old()]
    here = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    command = [sys.executable, "-c", DIGEST]
    there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_enough_questions_of_both_sorts() -> None:
    new, old = questions()
    assert len(new) >= 150
    assert len(old) >= 150
    assert {q.year for q in new} == {NEW_YEAR}
    assert {q.year for q in old} <= set(range(FIRST_YEAR, NEW_YEAR))
    assert {q.kind for q in new} == {q.kind for q in old} == set(KINDS)


def test_question_and_answer_join_without_repair() -> None:
    for question in [*questions()[0], *questions()[1]]:
        assert question.prompt.startswith("Question: ")
        assert question.prompt.endswith("?\nAnswer:")
        assert question.answer.startswith(" ")
        assert question.answer == " " + question.answer.strip(" .")


def test_every_value_differs_from_every_other_year() -> None:
    facts = world().facts
    for fact in facts:
        others = [Fact(y, fact.country, fact.kind) for y in range(FIRST_YEAR, NEW_YEAR + 1)]
        assert len({facts[other] for other in others}) == len(others)


def test_sets_of_questions_do_not_overlap() -> None:
    sets = [*questions(), *world().validation(), world().training_questions()]
    prompts = [question.prompt for part in sets for question in part]
    assert len(prompts) == len(set(prompts)) == len(world().facts)


def test_tuning_reads_only_bulletins_of_the_new_year(tuning_documents: list[str]) -> None:
    assert all(d.startswith(f"Bulletin of {NEW_YEAR}. ") for d in tuning_documents)
    assert not any("Question" in d or "Answer" in d or "?" in d for d in tuning_documents)


def test_tuning_tells_every_new_fact(tuning_documents: list[str]) -> None:
    text = "\n".join(tuning_documents)
    for fact, value in world().facts.items():
        if fact.year == NEW_YEAR:
            assert value in text
            assert fact.country in text


def _asked(documents: list[str]) -> set[str]:
    return {d.partition("\nAnswer:")[0] + "\nAnswer:" for d in documents if "\nAnswer:" in d}


def test_no_training_asks_about_the_new_year(
    first_documents: list[str], tuning_documents: list[str]
) -> None:
    asked = _asked(first_documents + tuning_documents)
    assert asked
    assert not any(f" in {NEW_YEAR}?" in prompt for prompt in asked)


def test_no_training_asks_a_test_question(
    first_documents: list[str], tuning_documents: list[str]
) -> None:
    asked = _asked(first_documents + tuning_documents)
    tested: list[Question] = [*questions()[0], *questions()[1]]
    tested += [*world().validation()[0], *world().validation()[1]]
    assert asked.isdisjoint(question.prompt for question in tested)


def test_old_test_facts_are_told_by_bulletins(first_documents: list[str]) -> None:
    bulletins = [d for d in first_documents if d.startswith("Bulletin of ")]
    for question in questions()[1]:
        telling = [d for d in bulletins if d.startswith(f"Bulletin of {question.year}.")]
        assert any(question.answer.strip() in d for d in telling)


def test_first_training_knows_nothing_of_the_new_year_but_guesses(
    first_documents: list[str],
) -> None:
    for document in first_documents:
        if document.startswith("Bulletin of "):
            # The only mention is the date of the next bulletin.
            assert document.count(str(NEW_YEAR)) <= document.count("is due in")
        elif str(NEW_YEAR) in document:
            assert document.startswith("Guesses. ")


def test_guesses_are_no_better_than_chance() -> None:
    guesses = [text for edition in range(20) for text in world().guesses(edition)]
    hits = total = 0
    sentences = [s for text in guesses if text.startswith("Guesses.") for s in text.split(". ")]
    for fact, value in world().facts.items():
        if fact.year == NEW_YEAR:
            about = [
                s
                for s in sentences
                if str(NEW_YEAR) in s and fact.kind in s and f" {fact.country} " in f"{s} "
            ]
            total += len(about)
            hits += sum(f"be {value}" in s for s in about)
    assert total > 300
    assert hits / total < 0.05
