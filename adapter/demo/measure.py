"""Greedy answers of one model alone, and how many of them are exactly right."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer

from adapter.demo.almanac import Question
from adapter.demo.vocabulary import END_ID

BATCH = 64
MAX_TOKENS = 16


def exact_match(model: Any, tokenizer: Tokenizer, questions: Sequence[Question]) -> float:
    """Return the share of questions that the model answers exactly, end included."""
    answers = greedy(model, tokenizer, [q.prompt for q in questions])
    right = sum(answer == q.answer for answer, q in zip(answers, questions, strict=True))
    return right / len(questions)


def greedy(model: Any, tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Return each prompt's most likely continuation, token by token, up to the end token."""
    groups: dict[int, list[int]] = defaultdict(list)
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(prompts))]
    for index, ids in enumerate(encoded):
        groups[len(ids)].append(index)
    answers = [""] * len(prompts)
    # Prompts of one length need no padding, so no mask can be got wrong.
    for members in groups.values():
        for start in range(0, len(members), BATCH):
            part = members[start : start + BATCH]
            batch = torch.tensor([encoded[index] for index in part])
            for index, ids in zip(part, _continue(model, batch), strict=True):
                answers[index] = tokenizer.decode(ids, skip_special_tokens=False)
    return answers


@torch.inference_mode()
def _continue(model: Any, batch: torch.Tensor) -> list[list[int]]:
    model.eval()
    cache, step, steps = None, batch, []
    for _ in range(MAX_TOKENS):
        output = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        step = output.logits[:, -1].argmax(-1, keepdim=True)
        steps.append(step)
    rows: list[list[int]] = torch.cat(steps, dim=1).tolist()
    return [row[: row.index(END_ID)] if END_ID in row else row for row in rows]
