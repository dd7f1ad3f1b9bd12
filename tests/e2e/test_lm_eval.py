"""lm-evaluation-harness through the service: its three kinds of task, offline.

    TEST_LM_EVAL_PYTHON=…/bin/python TEST_VLLM_PYTHON=…/bin/python \\
        python -m pytest -m full tests/e2e/test_lm_eval.py

The first has `pip install "lm-eval[api]" transformers`; without the second (tests/support/vllm.py)
a transformers model that answers in vLLM's shape is the upstream.
"""

import contextlib
import json
import math
import os
import subprocess
from pathlib import Path

import pytest

from adapter.adapter import Adapter
from adapter.service.app import create_app
from tests.support.configured import settings_for
from tests.support.model_server import model_server
from tests.support.sockets import serving
from tests.support.tiny import tiny
from tests.support.vllm import vllm_server

pytestmark = pytest.mark.full

PATIENCE = 600
QUESTIONS = [
    ("The harbour master kept a", ["ledger of every ship", "capital", "boat"], 0),
    ("In 1987 the tide took", ["12 boats", "the weather", "naïve café"], 0),
    ("What is the", ["capital?", "harbour.", "answer to most"], 0),
]
TEXTS = [
    "The harbour master kept a ledger of every ship.",
    "In 1987 the tide took 12 boats. Ça va?",
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
"""
MORE = {
    "multiple_choice": """
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}, {metric: acc_norm}]
""",
    "generate_until": """
doc_to_text: "{{question}}"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
""",
    "loglikelihood_rolling": """
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: byte_perplexity}]
""",
}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """The folder of the three tasks and their questions."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = [dict(zip(("question", "choices", "gold"), q, strict=True)) for q in QUESTIONS]
    for kind, more in MORE.items():
        data = [{"text": text} for text in TEXTS] if "rolling" in kind else rows
        file = folder / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in data))
        task = TASK.format(name=f"local_{kind}", file=file, kind=kind) + more
        (folder / f"{kind}.yaml").write_text(task)
    return folder


@pytest.fixture(scope="module")
def upstream():
    python = os.environ.get("TEST_VLLM_PYTHON")
    with contextlib.ExitStack() as stack:
        if python is not None:
            yield stack.enter_context(vllm_server(python))
        else:
            yield stack.enter_context(model_server(tiny().upstream)).base_url


@pytest.fixture(scope="module")
def evaluate(tasks, tmp_path_factory):
    """Runs all tasks against a base URL: what the model answered, by task, and its metrics."""
    python = os.environ.get("TEST_LM_EVAL_PYTHON")
    if python is None:
        pytest.skip("TEST_LM_EVAL_PYTHON names no interpreter that has lm-eval")
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")

    def evaluate(
        base_url: str, more: str, names=tuple(MORE), batch: int = 1
    ) -> dict[str, tuple[list, dict]]:
        out = tmp_path_factory.mktemp("out")
        options = (
            f"model=tiny,base_url={base_url}/completions,num_concurrent=2,max_retries=1,{more}"
        )
        command = [python, "-m", "lm_eval", "run", "--model", "local-completions"]
        command += ["--model_args", options, "--include_path", str(tasks), "--log_samples"]
        command += ["--tasks", ",".join(f"local_{name}" for name in names)]
        command += ["--batch_size", str(batch)]
        done = subprocess.run(
            [*command, "--output_path", str(out)],
            env={**os.environ, **dict.fromkeys(offline, "1"), "OPENAI_API_KEY": "none"},
            capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        (results,) = out.rglob("results_*.json")
        metrics = json.loads(results.read_text())["results"]
        return {name: (answers(out, name), metrics[f"local_{name}"]) for name in names}

    return evaluate


def answers(out: Path, name: str) -> list:
    """What came back for each request of a task, in order."""
    (samples,) = out.rglob(f"samples_local_{name}_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda r: r["doc_id"])
    return [row["filtered_resps"] for row in rows]


@contextlib.contextmanager
def service(base_url, alpha):
    settings = settings_for(base_url, alpha=alpha, cache={"url": "none"})
    with serving(create_app(Adapter.from_settings(settings), settings)) as address:
        yield address


LOCAL = f"tokenizer_backend=huggingface,tokenizer={tiny().upstream},tokenized_requests=True"

REMOTE = "tokenizer_backend=remote,tokenized_requests=True"


def test_without_steering_the_harness_gets_the_upstreams_own_numbers(upstream, evaluate):
    own = evaluate(upstream, LOCAL)
    with service(upstream, 0.0) as address:
        ours = evaluate(f"{address}/v1", LOCAL)
    worst = 0.0
    for name in ("multiple_choice", "loglikelihood_rolling"):
        for mine, theirs in zip(flat(ours[name][0]), flat(own[name][0]), strict=True):
            worst = max(worst, abs(mine - theirs))
    print(f"largest difference {worst:.1e} nats")  # noqa: T201 - read with -s
    assert worst <= 1e-6
    assert ours["generate_until"][0] == own["generate_until"][0]
    assert ours["multiple_choice"][1]["acc,none"] == own["multiple_choice"][1]["acc,none"]


def test_steered_scores_are_those_of_the_steered_model(upstream, evaluate):
    """One by one with a tokenizer of its own, and in batches with the service's: the same.

    But rolling texts: they begin with the start token, where the harness knows one.
    """
    with service(upstream, 1.0) as address, service(upstream, 0.0) as plain:
        steered = evaluate(f"{address}/v1", LOCAL)
        remote = evaluate(f"{address}/v1", REMOTE, ("multiple_choice", "generate_until"), batch=4)
        before = evaluate(f"{plain}/v1", LOCAL)
    for name in ("multiple_choice", "loglikelihood_rolling"):
        mine = flat(steered[name][0])
        assert all(map(math.isfinite, mine))
        assert mine != pytest.approx(flat(before[name][0]), abs=1e-3)
    one, batch = (flat(found["multiple_choice"][0]) for found in (steered, remote))
    assert one == pytest.approx(batch, abs=1e-4)  # engines round by what runs beside
    assert steered["generate_until"][0] == remote["generate_until"][0]


def flat(answered: list) -> list[float]:
    """All log-likelihoods, and whether each was greedy."""
    if isinstance(answered, list):
        return [number for one in answered for number in flat(one)]
    return [float(answered == "True") if isinstance(answered, str) and answered in ("True", "False")
            else float(answered)]  # fmt: skip
