"""Compare what a command prints with ``--json`` with the schema, which the package holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

import weightcache

SCHEMA: dict[str, Any] = json.loads(
    Path(weightcache.__file__).parent.joinpath("cli", "output.schema.json").read_text(encoding="utf-8")
)


def strict(schema: Any) -> Any:
    """Return the schema without room for keys that it does not name: a new key must be documented."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    return {**closed, "additionalProperties": False} if isinstance(closed.get("properties"), dict) else closed


_VALIDATOR = Draft202012Validator(strict(SCHEMA))


def checked(text: str) -> Any:
    """Return the document of a text, after it was found to be one that the schema describes."""
    document = json.loads(text)
    name = "error" if "error" in document else document["command"]
    if name == "ensure" and document["dry_run"]:
        name = "plan"
    # That definition alone, for a message that says what is wrong; and all, for a document that fits two of them.
    for schema in ({"$ref": f"#/$defs/{name}"}, {"oneOf": _VALIDATOR.schema["oneOf"]}):
        if name != "doctor" or "answers" not in document or "oneOf" in schema:
            Draft202012Validator({**schema, "$defs": _VALIDATOR.schema["$defs"]}).validate(document)
    return document
