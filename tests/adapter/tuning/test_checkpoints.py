"""Which checkpoint a killed tuning goes on from."""

import json

import pytest

from adapter.tuning.checkpoints import has_ended, last_checkpoint


@pytest.fixture
def leave(tmp_path):
    def checkpoint(step, state):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"")
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
        return folder

    return checkpoint


def test_the_furthest_whole_one(tmp_path, leave):
    assert last_checkpoint(tmp_path / "nowhere") is None
    assert last_checkpoint(tmp_path) is None
    leave(9, "{}")
    whole = leave(10, "{}")
    broken = [leave(11, '{"epoch"'), leave(100, None)]
    assert last_checkpoint(tmp_path) == whole
    assert not any(folder.exists() for folder in broken)
    assert (tmp_path / "checkpoint-9").exists()


@pytest.mark.parametrize("over", [True, False])
def test_whether_it_is_the_end(leave, over):
    control = {"args": {"should_training_stop": over}, "attributes": {}}
    folder = leave(3, json.dumps({"stateful_callbacks": {"TrainerControl": control}}))
    assert has_ended(folder) is over
