"""Suites and settings for the tiny models behind a served one, written to files."""

import json

import yaml

from tests.support.tiny import tiny

QUESTIONS = [
    ("Who kept the ledger?", ["the harbour master", "the small town", "a boat", "nobody"], [0]),
    ("What took 12 boats?", ["the tide", "the weather, and 1987", "is"], [0]),
    ("Was ist naïve? 東京", ["Über die Brücke", "café", "天気"], [1, 2]),
    ("What is the capital?", ["it isn't here", "the harbour"], [1]),
    ("Where is the weather?", ["into it", "in the ledger", "12"], [2]),
]


def write_questions(path, questions=QUESTIONS):
    """A file of the project's own format."""
    objects = [
        {"prompt": f"{prompt} Answer:", "answers": answers, "right": right}
        for prompt, answers, right in questions
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in objects), "utf-8")
    return path


def write_suite(folder, *tasks, **more):
    """A suite over `folder`'s own files; each task is filled up."""
    whole = {"model": "tiny", "alone": [], "tasks": list(tasks)} | more
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(whole), "utf-8")
    return path


def write_settings(folder, base_url, *, other=False, upstream=None, **more):
    """Settings for one model named `tiny`, with an identity pair unless `other`."""
    models = tiny()
    pair = {
        "experts": {"news": str(models.other_expert if other else models.expert)},
        "antiexpert": str(models.other_antiexpert if other else models.antiexpert),
        "device": "cpu",
    }
    server = {"base_url": base_url, "model": "tiny", "tokenizer": f"hf:{models.upstream}"}
    model = {"upstream": server | (upstream or {}), "pair": pair | more.pop("pair", {})}
    model |= more.pop("model", {})
    path = folder / "adapter.yaml"
    path.write_text(yaml.safe_dump({"models": {"tiny": model} | more.pop("models", {})} | more))
    return path


ANSWERS = {"name": "asked", "kind": "answers", "reader": "questions", "data": "questions.jsonl"}
