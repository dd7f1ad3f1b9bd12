"""The raw text an expert is tuned on: the almanac's own bulletins, a file each."""

from pathlib import Path

from typer.testing import CliRunner

from adapter.cli import app
from adapter.demo.almanac import NEW_YEAR, questions, world
from adapter.demo.bulletins import EDITIONS, write_bulletins
from adapter.evaluation.readers import read
from adapter.evaluation.suite import load_suite
from adapter.settings import load_settings
from adapter.tuning.corpus import read_corpus


def test_the_files_are_the_bulletins_of_the_new_year(tmp_path):
    count = write_bulletins(tmp_path, editions=3)
    found = [d.content for d in read_corpus(tmp_path).documents]
    assert found == list(world().tuning(3))
    assert len(found) == count


def test_the_command_writes_them_with_all_that_is_needed_beside_them(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--write-example", str(tmp_path / "almanac")])
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"bulletins, questions and settings in {tmp_path / 'almanac'}\n")
    bulletins = tmp_path / "almanac" / "bulletins"
    assert len(list(bulletins.iterdir())) == EDITIONS
    assert (bulletins / f"{NEW_YEAR}-01" / "bulletin-001.txt").exists()
    (model,) = load_settings(tmp_path / "almanac" / "almanac.yaml").models.values()
    assert model.pair.experts == {"news": str(tmp_path / "almanac" / "expert")}
    suite = load_suite(tmp_path / "almanac" / "suite.yaml")
    asked = [read(t.reader, [Path(d) for d in t.data], t.template, t.kind) for t in suite.tasks]
    assert [[i.prompt for i in items] for items in asked] == [
        [q.prompt for q in age] for age in questions()
    ]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["demo", "--write-example", str(tmp_path / "file")])
    assert "cannot be written to" in str(result.exception)
