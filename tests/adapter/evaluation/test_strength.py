"""A fitted strength written into settings files of many layouts."""

import json

import pytest
import yaml

from adapter.errors import SettingsError
from adapter.evaluation.strength import write_alpha

WITH = """# the news
models:
  gpt-news:   # what clients ask for
    upstream: {base_url: "https://api.example.com/v1", model: m}
    alpha: 1.0   # fitted by nobody
    pair:
      antiexpert: ./base
  other: {alpha: 1}
cache: {url: none}
"""


@pytest.fixture
def written(tmp_path):
    def write(text, model="gpt-news", alpha=2.5):
        path = tmp_path / "adapter.yaml"
        path.write_text(text, "utf-8")
        write_alpha(path, model, alpha)
        assert [p.name for p in tmp_path.iterdir()] == ["adapter.yaml"]
        return path.read_text("utf-8")

    return write


def test_a_value_is_replaced_and_nothing_else(written):
    assert written(WITH) == WITH.replace("alpha: 1.0 ", "alpha: 2.5 ")
    assert written(WITH, "other", 2) == WITH.replace("{alpha: 1}", "{alpha: 2}")


def test_a_line_is_put_in_where_there_was_none(written):
    text = WITH.replace("    alpha: 1.0   # fitted by nobody\n", "")
    expected = text.replace("    upstream:", "    alpha: 2.5\n    upstream:")
    assert written(text) == expected


def test_flow_style_and_json(written):
    text = json.dumps({"models": {"gpt-news": {"upstream": {"model": "m"}}}})
    assert json.loads(written(text))["models"]["gpt-news"] == {
        "upstream": {"model": "m"},
        "alpha": 2.5,
    }


@pytest.mark.parametrize(
    "text",
    [
        "models:\n  a: &one {alpha: 1, upstream: {}}\n  gpt-news: *one\n",
        "models:\n  gpt-news: {}\n",
        "models:\n  gpt-news:\n",
        "models: {}\n",
        "cache: {url: none}\n",
    ],
    ids=["shared", "empty", "none", "no model", "no models"],
)
def test_what_cannot_be_written_alone_is_left_to_the_reader(tmp_path, text):
    path = tmp_path / "adapter.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"write alpha: 2\.5 below models\.gpt-news"):
        write_alpha(path, "gpt-news", 2.5)
    assert path.read_text() == text


def test_merged_keys_are_overridden_for_this_model_alone(written):
    own = "    <<: *b\n    upstream: {}\n"
    text = f"base: &b\n  alpha: 1\nmodels:\n  gpt-news:\n{own}  x:\n{own}"
    data = yaml.safe_load(written(text))["models"]
    assert (data["gpt-news"]["alpha"], data["x"]["alpha"]) == (2.5, 1)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(SettingsError, match="cannot be written"):
        write_alpha(tmp_path / "none.yaml", "m", 1.0)
