"""Tests of carrying out gin statements: what gin ends up with, what is remembered, which place an error names."""

from pathlib import Path

import gin
import pytest
from gin import config as gin_config

from promot_t5x.configuration import gin_statements
from promot_t5x.configuration.flags import ConfigError

HEADER = "from __gin__ import dynamic_registration\nimport fractions\n"


@pytest.fixture
def parse(tmp_path):
    """Writes files by name and parses the first; includes are found among them only."""

    def find(name):
        path = tmp_path / name
        if not path.is_file():
            raise FileNotFoundError(f"no {name}")
        return path

    def parse_files(**texts):
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        return gin_statements.parse_file(tmp_path / next(iter(texts)), find)

    return parse_files


def test_bindings_and_their_origins(parse, tmp_path):
    imports = parse(a=HEADER + "A = 1\ninclude 'b'\ns/fractions.Fraction.numerator = %A\n", b="import math\nA = 2\n")
    assert [statement.module for statement in imports] == ["math", "__gin__.dynamic_registration", "fractions"]
    assert gin.query_parameter("A/gin.macro.value") == 2
    assert gin_statements.ORIGINS == {
        ("A", "gin.macro", "value"): (f"{tmp_path / 'b'}:2", "A", False),
        ("s", "fractions.Fraction", "numerator"): (f"{tmp_path / 'a'}:5", "s/fractions.Fraction.numerator", False),
    }
    assert gin_statements.MENTIONED == {"fractions.Fraction": "fractions.Fraction", "gin.macro": "gin.macro"}


def test_statements_of_a_flag(parse):
    imports = parse(a=HEADER + "fractions.Fraction.numerator = 3\n")
    with gin_config._parse_scope() as context:
        for statement in imports:
            context.process_import(statement)
        assert gin_statements.run_statements("Fraction.numerator = 4", None, context, Path) == []
    assert gin.query_parameter("fractions.Fraction.numerator") == 4
    assert gin_statements.ORIGINS["", "fractions.Fraction", "numerator"] == (
        "flag 'Fraction.numerator = 4'",
        "fractions.Fraction.numerator",
        True,
    )


@pytest.mark.parametrize(
    ("texts", "place", "sentence"),
    [
        ({"a": "A = 1\nB = x\n"}, "a:2", "gin syntax error: 'x' is not a gin value (a string needs quotes) in `B = x`"),
        ({"a": "\ninclude 'c'\n"}, "a:2", "no c"),
        ({"a": "include 'b'\n", "b": "\n\ninclude 'a'\n"}, "b:3", "'a' includes itself: remove one of the includes"),
        (
            {"a": HEADER + "fraction.F.x = 1\n"},
            "a:3",
            "'fraction' is not an imported module (did you mean",
        ),
        ({"a": HEADER + "fractions.Fractio.x = 1\n"}, "a:3", "fractions has no attribute 'Fractio' (did you mean"),
        ({"a": HEADER + "fractions.Fraction.numerato = 1\n"}, "a:3", "fractions.Fraction has no parameter 'numerato'"),
        ({"a": HEADER + "\nimport zzz\n"}, "a:4", "`import zzz` failed: No module named 'zzz'"),
    ],
)
def test_an_error_names_its_place(parse, tmp_path, texts, place, sentence):
    with pytest.raises(ConfigError) as caught:
        parse(**texts)
    assert str(caught.value).startswith(f"{tmp_path / place}: {sentence}")
