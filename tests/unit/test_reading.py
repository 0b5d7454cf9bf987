"""Tests of validating JSON from external files."""

import json
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest

from ptq4vm.errors import PTQ4VMError
from ptq4vm.reading import parse_json, parse_number, read_json, typed


class Method(TypedDict):
    name: str
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Config:
    bits: str
    kind: Literal["a", "b"] = "a"
    names: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "text",
    ["[" * 10_000 + "]" * 10_000, "[" * 33 + "]" * 33, "1" * 400, "1" * 5000, str(2**64),
     '"\\ud800"', '"\\u0000"', '{"\\u0000": 1}', "{", ""],
)  # fmt: skip
def test_json_that_nothing_can_work_with_is_refused(text, tmp_path):
    with pytest.raises(ValueError):  # noqa: PT011  (includes JSONDecodeError)
        parse_json(text)
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(PTQ4VMError, match=r"Expected JSON in .*file\.json"):
        read_json(path)


def test_what_is_no_file_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(PTQ4VMError, match="Expected JSON"):
            read_json(path)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (3, float), (float("nan"), float), (float("inf"), float), ("x", str), (None, str | None),
        ([1, 2], list[int]), ([1, 2], tuple[int, int]), ({"a": [1.5]}, dict[str, list[float]]),
        ({"bits": "W4A4", "names": ["x"]}, Config),
        ({"name": "x", "metrics": {"mad": None}, "more": 1}, Method), ([], list[Method]),
        ({"x": [{}]}, Any),
    ],
)  # fmt: skip
def test_values_of_the_kind_pass(value, kind):
    assert typed(value, kind, "a thing", "file", "") is value


@pytest.mark.parametrize(
    ("value", "kind", "got"),
    [
        (True, float, "True, not a number,"),
        (True, int, "True, not an integer,"),
        (1.0, int, "1.0, not an integer,"),
        (1e308, float, "1e[+]308, not a number,"),
        (3, str | None, "3, not text,"),
        ([1, 2, 3], tuple[int, int], "not a list of 2,"),
        ([1, None], list[int], "None, not an integer, for 1"),
        (
            [[{"name": "x", "metrics": {"mad": "low"}}]],
            list[list[Method]],
            "'low', not a number, for 0.0.metrics.mad",
        ),
        ([{"name": "x"}], list[Method], "nothing for 0.metrics"),
        ({}, Config, "nothing for bits"),
        ({"bits": "x", "kind": "c"}, Config, "'c', not one of 'a', 'b', for kind"),
        ({"bits": "x", "more": 1}, Config, "an unknown setting for more"),
        ([], dict, "not an object,"),
    ],
)
def test_values_of_another_kind_are_refused_by_their_key(value, kind, got):
    with pytest.raises(PTQ4VMError, match=f"Expected a thing in file, got .*{got}.* Remove it"):
        typed(value, kind, "a thing", "file", "Remove it.")


def test_the_numbers_of_a_log():
    assert [parse_number(text) for text in ("1", "-2e3", "inf")] == [1.0, -2000.0, float("inf")]
    for text in ("", "many", "1e308"):
        with pytest.raises(ValueError, match=r"number|float"):
            parse_number(text)


def test_an_error_shows_little_of_a_large_value():
    with pytest.raises(PTQ4VMError) as caught:
        typed(
            json.loads(json.dumps({"x" * 5000: ["y" * 5000]})),
            dict[str, float],
            "numbers",
            "file",
            "",
        )
    assert len(str(caught.value)) < 300
