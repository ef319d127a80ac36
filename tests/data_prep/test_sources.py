"""sources.py: what a TOML file of sources says, and each way it can be wrong."""

from pathlib import Path

import pytest

from disentangled.data_prep.sources import Source, load_sources


def test_sources_are_read_in_order_relative_to_the_file(tmp_path: Path):
    path = tmp_path / "sources.toml"
    path.write_text('[[source]]\nname="sw"\nweight=2\ninput="sw/*.txt"\n[[source]]\nname="de"\ninput=["a", "/b"]\n')
    assert load_sources(path) == (
        Source("sw", 2.0, (str(tmp_path / "sw/*.txt"),)),
        Source("de", 1.0, (str(tmp_path / "a"), "/b")),
    )


A = '[[source]]\nname = "a"\ninput = ["x"]\n'


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "holds no list of sources"),
        ("[source]\nname = 'a'", "holds no list of sources"),
        (f"seed = 1\n{A}", "holds no list of sources"),
        ("source = [1]", "source 1 is no table"),
        ("[[source", "not valid TOML"),
        (A + A, "source 'a' is listed twice: put its inputs together or rename one"),
        (A + "weight = 0", "the weights sum to nothing: give at least one source a weight above 0"),
        (A + "weight = -1", "weight is -1: give a number of 0 or more"),
        (A + "weight = nan", "weight is nan"),
        (A + "weight = true", "weight is True"),
        (A + "wieght = 1", "source 1 has an unknown key 'wieght': its keys are name, weight, input"),
        ('[[source]]\ninput = ["x"]', "source 1: name is None"),
        ('[[source]]\nname = "a/b"\ninput = ["x"]', "name is 'a/b': give it one of letters, digits and underscores"),
        ('[[source]]\nname = "a"', "source 1, 'a': input is None"),
        ('[[source]]\nname = "a"\ninput = []', r"input is \[\]: give a list"),
    ],
)
def test_file_that_says_something_else_is_refused(tmp_path: Path, content: str, fault: str):
    path = tmp_path / "sources.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"sources\.toml: .*{fault}") as caught:
        load_sources(path)
    assert "\n" not in str(caught.value).replace("\\n", "")


def test_absent_file_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"absent\.toml: no such file: check --sources"):
        load_sources(tmp_path / "absent.toml")
