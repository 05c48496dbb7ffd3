"""Every manifest that a test of this folder loads must pass the schema, which editors check it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from weightcache.manifest.parse import parse

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/reference/weights.schema.json").read_text())


@pytest.fixture(scope="session")
def validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(SCHEMA)


def is_toml(value: Any, depth: int = 10) -> bool:
    """Whether TOML can say this value: other mappings, tuples and ``None`` come from programs only."""
    if depth and type(value) is dict:
        return all(type(key) is str and is_toml(each, depth - 1) for key, each in value.items())
    if depth and type(value) is list:
        return all(is_toml(each, depth - 1) for each in value)
    return type(value) in (str, int, bool, float)


@pytest.fixture(autouse=True)
def what_loads_passes_the_schema(
    monkeypatch: pytest.MonkeyPatch, validator: jsonschema.Draft202012Validator
) -> list[Any]:
    """Return the manifests that were checked."""
    checked: list[Any] = []

    def parse_and_check(data: Any, source: str, *, is_file: bool) -> Any:
        found = parse(data, source, is_file=is_file)
        if is_toml(data):
            validator.validate(data)
            checked.append(data)
        return found

    monkeypatch.setattr("weightcache.manifest.parse", parse_and_check)
    return checked
