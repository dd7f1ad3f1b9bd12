"""The store: what is kept, what a kill leaves behind, and whose it is."""

import pytest

from adapter.errors import SettingsError
from adapter.evaluation.outcomes import Outcome
from adapter.evaluation.replies import Strength
from adapter.evaluation.store import FILE, Store

ONE = Outcome("recent", "adapted", 0.5, "q1", 1.0, answer="東京", scores=(-1.5,), places=(0, 2))
TWO = Outcome("recent", "hosted", None, "q1", 0.0, cost=0.25)
FACTS = {"data": "a", "model": "b"}


def test_outcomes_come_back_as_they_were(tmp_path):
    folder = tmp_path / "runs" / "one"
    with Store(folder, FACTS) as store:
        assert not store.has("recent", Strength("hosted"), "q1")
        store.add([ONE, TWO])
    with Store(folder, FACTS) as store:
        assert store.outcomes == [ONE, TWO]
        assert store.has("recent", Strength("hosted"), "q1")
        assert store.has("recent", Strength("adapted", 0.5), "q1")
        assert not store.has("recent", Strength("adapted", 1.0), "q1")
        assert not store.has("recent", Strength("hosted"), "q2")


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    with Store(tmp_path, FACTS) as store:
        store.add([ONE])
        store.add([TWO])
    file = tmp_path / FILE
    whole = file.read_bytes()
    for cut in range(len(whole.splitlines(keepends=True)[0]), len(whole)):
        file.write_bytes(whole[:cut])
        with Store(tmp_path, FACTS) as store:
            kept = whole[:cut].count(b"\n") - 1
            assert store.outcomes == [ONE, TWO][:kept]
            store.add([TWO])
        with Store(tmp_path, FACTS) as store:
            assert TWO in store.outcomes


def test_a_header_cut_short_is_written_anew(tmp_path):
    with Store(tmp_path, FACTS):
        pass
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-5])
    with Store(tmp_path, FACTS) as store:
        store.add([ONE])
    with pytest.raises(SettingsError, match="begun with another data"):
        Store(tmp_path, FACTS | {"data": "other"})


def test_other_settings_are_refused_and_named(tmp_path):
    with Store(tmp_path, FACTS) as store:
        store.add([ONE])
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(SettingsError, match=r"another data, model: choose another --out"):
        Store(tmp_path, {"data": "x", "model": "y"})
    assert (tmp_path / FILE).read_bytes() == before
    with Store(tmp_path, FACTS | {"data of another task": "c"}) as store:  # there is more to ask
        assert store.outcomes == [ONE]
    with pytest.raises(SettingsError, match="another data of another task"):
        Store(tmp_path, {"data of another task": "d"})


def test_a_run_that_kept_nothing_binds_nobody(tmp_path):
    with Store(tmp_path, FACTS):
        pass
    with Store(tmp_path, FACTS | {"model": "other"}) as store:
        store.add([ONE])
    with pytest.raises(SettingsError, match="another model"):
        Store(tmp_path, FACTS)


@pytest.mark.parametrize("line", ["{}", "[]", "nonsense", '{"task": 1}'])
def test_another_file_is_left_alone(tmp_path, line):
    (tmp_path / FILE).write_text(line + "\n")
    with pytest.raises(SettingsError, match="line 1: is no outcome"):
        Store(tmp_path, FACTS)
    assert (tmp_path / FILE).read_text() == line + "\n"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cannot be kept"):
        Store(tmp_path / "file" / "run", FACTS)
