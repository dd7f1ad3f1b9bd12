"""One model of a pair read by itself: a LoRA expert is what it is when it is merged."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from adapter.pair.pair import Pair
from adapter.pair.reader import ANTIEXPERT
from tests.adapter.pair.test_lora import train
from tests.support.tiny import tiny

HEAD, PATHS = (60, 61, 62, 63), [(64, 65, 66), (64, 70), (71,), ()]


def expected(folder, head, path):
    """Fresh forwards of a whole model."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = [*head, *path]
    with torch.inference_mode():
        rows = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return [rows[j, ids[j + 1]].item() for j in range(len(head) - 1, len(ids) - 1)], rows[-1]


async def test_paths_behind_a_head(tmp_path):
    folder = train(tmp_path, 1)
    pair = Pair.load({"news": str(folder / "adapter")}, str(tiny().antiexpert), "cpu", "float32")
    try:
        for name, path in (("news", folder / "merged"), (ANTIEXPERT, tiny().antiexpert)):
            alone = pair.alone(name)
            for found, ids in zip(await alone.chances(HEAD, PATHS), PATHS, strict=True):
                assert found == pytest.approx(expected(path, HEAD, ids)[0], abs=1e-4)
            row = await alone.next((*HEAD, 80))
            np.testing.assert_allclose(row, expected(path, HEAD, (80,))[1], atol=1e-4)
            alone.close()
            with pytest.raises(RuntimeError, match="closed"):
                await alone.next(HEAD)
    finally:
        pair.close()
