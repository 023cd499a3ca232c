"""Words for allowed values, from JSON schemas; how they appear in messages is tested in test_specfile."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from schemas.problems import describe, show


class Inner(BaseModel):
    a: int
    b: str = ""


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Outer(BaseModel):
    text: str
    maybe: int | None = None
    bounded: int = Field(default=1, ge=1, lt=10)
    pattern: str = Field(default="a", pattern="^a$")
    choice: Literal["cpu", "cuda"] = "cpu"
    inner: Inner
    pair: list[int] = Field(min_length=2, max_length=2)
    some: list[str] = Field(min_length=1)
    many: list[str | Inner] | str
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    flag: bool
    whatever: Any


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("text", "a string"),
        ("maybe", "an integer or null"),
        ("bounded", "an integer >= 1 and < 10"),
        ("pattern", "a string matching ^a$"),
        ("choice", "cpu or cuda"),
        ("inner", "a mapping with the keys a, b"),
        ("pair", "a list of 2, each an integer"),
        ("some", "a list of at least 1, each a string"),
        ("many", "a list, each a string or a mapping with the keys a, b or a string"),
        ("pet", "a mapping with kind: cat or dog"),
        ("flag", "true or false"),
        ("whatever", "any value"),
    ],
)
def test_allowed_values_follow_from_the_model(field: str, words: str) -> None:
    schema = Outer.model_json_schema()
    assert describe(schema["properties"][field], schema["$defs"]) == words


def test_nearest_choice_comes_first() -> None:
    schema = Outer.model_json_schema()
    assert describe(schema["properties"]["choice"], {}, found="cudda") == "cuda or cpu"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "null"),
        (True, "true"),
        (1, "1 (an integer)"),
        (0.5, "0.5 (a number)"),
        ("1", "'1' (a string)"),
        (datetime.date(2024, 1, 2), "2024-01-02 (a date)"),
        ([1], "a list of 1"),
        ({"a": 1, 2: 2}, "a mapping with the keys a, 2"),
        ({}, "an empty mapping"),
    ],
)
def test_values_are_shown_with_their_kind(value: Any, words: str) -> None:
    """YAML turns `no` into false and 2024-01-02 into a date: without the kind the message reads like a mistake."""
    assert show(value) == words


def test_long_values_are_cut() -> None:
    assert len(show("x" * 10_000)) < 100
