"""The raw text an expert is tuned on: the almanac's own bulletins, a file each."""

from typer.testing import CliRunner

from adapter.cli import app
from adapter.demo.almanac import NEW_YEAR, world
from adapter.demo.bulletins import EDITIONS, write_bulletins
from adapter.tuning.corpus import read_corpus


def test_the_files_are_the_bulletins_of_the_new_year(tmp_path):
    count = write_bulletins(tmp_path, editions=3)
    found = [d.content for d in read_corpus(tmp_path).documents]
    assert found == list(world().tuning(3))
    assert len(found) == count


def test_the_command_writes_them(tmp_path):
    result = CliRunner().invoke(app, ["demo", "--write-corpus", str(tmp_path / "bulletins")])
    assert result.exit_code == 0, result.output
    assert result.output.endswith(f"bulletins in {tmp_path / 'bulletins'}\n")
    assert len(list((tmp_path / "bulletins").iterdir())) == EDITIONS
    assert (tmp_path / "bulletins" / f"{NEW_YEAR}-01" / "bulletin-001.txt").exists()


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(app, ["demo", "--write-corpus", str(tmp_path / "file")])
    assert "cannot be written to" in str(result.exception)
