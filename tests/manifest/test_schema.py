"""The JSON Schema of a manifest: it knows the parser's keys, and refuses nothing that the parser accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightcache import Manifest, ManifestError

HERE = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((HERE / "docs/reference/weights.schema.json").read_text())
PAGES = sorted([HERE / "README.md", *HERE.glob("docs/**/*.md"), *HERE.glob("examples/*/README.md")])
BLOCKS = [block for page in PAGES for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.M)]
MANIFESTS = [block for block in BLOCKS if "[checkpoints." in block]
MANIFESTS += [path.read_text() for path in sorted(HERE.glob("examples/*/weights.toml"))]

A = "a" * 64
COMMIT = "86b5e0934494bd15c9632b12f734a8a67f723594"
FILE: dict[str, Any] = {"urls": ["https://h/x.pt"], "sha256": A, "size": 3, "file": "x.pt", "auth": "HF_TOKEN"}
FOLDER: dict[str, Any] = {"urls": [f"hf://a/b@{COMMIT}"], "files": {"d/x.pt": {"sha256": A, "size": 3}}}


def both() -> dict[str, Any]:
    manifest: dict[str, Any] = {"version": 1, "checkpoints": {"one": FILE, "folder": FOLDER}}
    return json.loads(json.dumps(manifest))  # type: ignore[no-any-return]


def is_loaded(data: Any) -> bool:
    try:
        Manifest.load(data)
    except ManifestError:
        return False
    return True


def passes(data: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(data)


def test_it_is_a_schema_of_the_newest_draft_and_of_an_old_one() -> None:
    """Editors with an older draft read it as one of that: it has no keyword that means another thing there."""
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["$id"].endswith("/docs/reference/weights.schema.json")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    for old in (jsonschema.Draft7Validator, jsonschema.Draft202012Validator):
        assert old(SCHEMA).is_valid(both())
        assert [data for data in MISTAKES.values() if old(SCHEMA).is_valid(changed(data))] == []


def tables(node: Any = SCHEMA) -> Iterator[dict[str, Any]]:
    """Yield every part of the schema."""
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from tables(child)


def test_every_key_has_a_description_where_an_editor_finds_it() -> None:
    """Beside a ``$ref``, taplo ignores it."""
    parts = [SCHEMA, SCHEMA["$defs"]["checkpoint"], SCHEMA["$defs"]["pin"]]
    for name, key in [item for part in parts for item in part["properties"].items()]:
        assert len(key["description"]) > 20, name
        assert "$ref" not in key, name
        assert key["type"], name
    assert all(len(part["description"]) > 20 and part["additionalProperties"] is False for part in parts)
    assert [each for each in tables() if "$ref" in each and len(each) > 1] == []


def known_to_the_parser(data: dict[str, Any]) -> list[str]:
    """Return the keys that the parser names where it refuses the key ``wrong``."""
    with pytest.raises(ManifestError) as caught:
        Manifest.load(data)
    [said] = [each for each in caught.value.problems if "wrong: unknown key" in each]
    return said.partition("known are ")[2].split(", ")


@pytest.mark.parametrize(
    ("part", "data"),
    [
        (SCHEMA, {"wrong": 1}),
        (SCHEMA["$defs"]["checkpoint"], {"checkpoints": {"c": {"wrong": 1}}}),
        (SCHEMA["$defs"]["pin"], {"checkpoints": {"c": {"urls": [], "files": {"x": {"wrong": 1}}}}}),
    ],
    ids=["top", "checkpoint", "file"],
)
def test_its_keys_are_those_of_the_parser(part: dict[str, Any], data: dict[str, Any]) -> None:
    assert list(part["properties"]) == known_to_the_parser(data)


def test_its_keys_are_those_of_the_page() -> None:
    page = (HERE / "docs/reference/manifest.md").read_text()
    named = re.findall(r"^\| `([\w.]+)` \| \w+", page.partition("## Keys")[2].partition("## Names")[0], re.MULTILINE)
    keys = set(SCHEMA["properties"])
    keys |= {f"checkpoints.NAME.{key}" for key in SCHEMA["$defs"]["checkpoint"]["properties"]}
    keys |= {f"checkpoints.NAME.files.PATH.{key}" for key in SCHEMA["$defs"]["pin"]["properties"]}
    assert set(named) == keys
    assert "weights.schema.json" in page


@pytest.mark.parametrize("text", MANIFESTS)
def test_every_manifest_of_the_pages_and_examples_passes(
    text: str, tmp_path: Path, what_loads_passes_the_schema: list[Any]
) -> None:
    (tmp_path / "weights.toml").write_text(text)
    Manifest.load(tmp_path / "weights.toml")
    assert len(what_loads_passes_the_schema) == 1
    assert len(MANIFESTS) >= 6


def changed(change: Callable[[Any, Any, Any], object]) -> Any:
    """Return a manifest with one mistake: ``change`` gets the manifest, the file and the folder."""
    data = both()
    change(data, data["checkpoints"]["one"], data["checkpoints"]["folder"])
    return data


def setting(key: str, value: Any) -> Callable[[Any, Any, Any], object]:
    return lambda _, one, __: one.update({key: value})


MISTAKES: dict[str, Callable[[Any, Any, Any], object]] = {
    "unknown key at the top": lambda top, *_: top.update(chekpoints={}),
    "unknown key": setting("sha265", A),
    "unknown key of a file": lambda _, __, folder: folder["files"]["d/x.pt"].update(md5=A),
    "another version": lambda top, *_: top.update(version=2),
    "version true": lambda top, *_: top.update(version=True),
    "version a string": lambda top, *_: top.update(version="1"),
    "no checkpoints": lambda top, *_: top.pop("checkpoints"),
    "checkpoints empty": lambda top, *_: top.update(checkpoints={}),
    "checkpoints an array": lambda top, *_: top.update(checkpoints=[FILE]),
    "checkpoint a string": lambda top, *_: top["checkpoints"].update(c="x"),
    "name with a slash": lambda top, one, _: top["checkpoints"].update({"a/b": one}),
    "name with a point first": lambda top, one, _: top["checkpoints"].update({".a": one}),
    "name too long": lambda top, one, _: top["checkpoints"].update({"a" * 101: one}),
    "no urls": lambda _, one, __: one.pop("urls"),
    "no urls of a directory": lambda _, __, folder: folder.pop("urls"),
    "urls a string": setting("urls", "https://h/x"),
    "url a number": setting("urls", [3]),
    "url twice": setting("urls", ["https://h/x", "https://h/x"]),
    "another scheme": setting("urls", ["s3://bucket/x"]),
    "no host": setting("urls", ["https:///x"]),
    "a space in a url": setting("urls", ["https://h/a b"]),
    "a branch of the Hub": setting("urls", ["hf://a/b@main/x"]),
    "no commit": setting("urls", ["hf://a/b/x"]),
    "a repository for a file": setting("urls", [f"hf://a/b@{COMMIT}"]),
    "a relative file": setting("urls", ["file:x"]),
    "no sha256": lambda _, one, __: one.pop("sha256"),
    "no sha256 of a file": lambda _, __, folder: folder["files"]["d/x.pt"].pop("sha256"),
    "sha256 short": setting("sha256", "abc"),
    "sha256 in upper case": setting("sha256", "A" * 64),
    "sha256 a number": setting("sha256", 1),
    "size negative": setting("size", -1),
    "size a float": setting("size", 1.5),
    "size true": setting("size", True),
    "size too large": setting("size", 1 << 63),
    "size a string": setting("size", "3"),
    "file with a slash": setting("file", "a/b"),
    "file ..": setting("file", ".."),
    "file too long": setting("file", "x" * 256),
    "files empty": lambda _, __, folder: folder.update(files={}),
    "files an array": lambda _, __, folder: folder.update(files=[]),
    "files beside sha256": lambda _, __, folder: folder.update(sha256=A),
    "files beside size": lambda _, __, folder: folder.update(size=1),
    "files beside file": lambda _, __, folder: folder.update(file="x"),
    "a digest instead of a table": lambda _, __, folder: folder["files"].update({"y": A}),
    **{
        f"path {path!r}": lambda _, __, folder, path=path: folder["files"].update({path: {"sha256": A}})
        for path in ("", "/x", "a//b", "a/./b", "../x", "a/..", "a/", ".", "a\\b", "a\nb", "a\x7f", "x" * 1025)
    },
    "auth a token": setting("auth", "hf_" + "x" * 30),
    "auth with a space": setting("auth", "MY TOKEN"),
    "auth a number": setting("auth", 1),
    "signed_by a digest": setting("signed_by", A),
    "signed_by an array": setting("signed_by", []),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_structure_is_refused_by_both(mistake: Callable[[Any, Any, Any], object]) -> None:
    data = changed(mistake)
    assert (is_loaded(data), passes(data)) == (False, False)
    assert (is_loaded(both()), passes(both())) == (True, True)


# Pieces that are right, nearly right and wrong, of which hypothesis builds manifests.
NAMES = st.sampled_from(["c", "Sam", "sam", "sam2.1", "a" * 100, "a" * 101, "a/b", ".c", "", "a\n", "ä"])
DIGESTS = st.sampled_from([A, "0123456789abcdef" * 4, A[1:], A.upper(), A + "\n", 1, True])
SIZES = st.sampled_from([0, 1, (1 << 63) - 1, 1 << 63, -1, True, 1.0, 1.5, "1"])
HOSTS = st.sampled_from(["h", "user:pw@h", "h:80", "h:x", "[::1]:8080", "[zz]", "hä", "", "a]b", "?x", "$"])
TAILS = st.text(st.sampled_from("ab/%.?#${}V ~@:\\\n\x85é"), max_size=8)
PATHS = st.one_of(
    st.text(st.sampled_from("a./\\\n\x85é b~"), max_size=8), st.sampled_from(["a" * 255, "é" * 512, "a" * 1025])
)
COMMITS = st.sampled_from([COMMIT, "main", "", COMMIT.upper()])
URLS = st.one_of(
    st.builds("{}{}/{}".format, st.sampled_from(["https://", "http://", "HTTPS://", "s3://"]), HOSTS, TAILS),
    st.builds(
        "{}{}".format, st.sampled_from(["file:", "file://", "file:///", "file:////", "file://localhost/"]), TAILS
    ),
    st.builds("hf://{}@{}{}".format, st.sampled_from(["a/b", "gpt2", "../b", "a/b/c", "a b"]), COMMITS, TAILS),
    st.just(3),
)
PIN = st.fixed_dictionaries({"sha256": DIGESTS}, optional={"size": SIZES})
SHARED = {
    "auth": st.sampled_from(["HF_TOKEN", "_", "1A", "hf_" + "x" * 16, "hf_x", "A\n", "Ä", 1]),
    "signed_by": st.sampled_from([f"sha256:{A}", A, f"sha512:{A}", f"sha256:{A}\n"]),
}
MIRRORS = {"urls": st.lists(URLS, max_size=3)}
ONE = st.fixed_dictionaries(MIRRORS | {"sha256": DIGESTS}, optional={"size": SIZES, "file": PATHS} | SHARED)
MANY = st.fixed_dictionaries(MIRRORS | {"files": st.dictionaries(PATHS, PIN, max_size=3)}, optional=SHARED)
DATA = st.fixed_dictionaries(
    {"checkpoints": st.dictionaries(NAMES, st.one_of(ONE, MANY), max_size=2)},
    optional={"version": st.sampled_from([1, 2, True, 1.0, "1"])},
)


@given(data=DATA)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_it_refuses_the_parser_refuses(data: Any) -> None:
    assert passes(data) or not is_loaded(data)


@given(entry=st.one_of(ONE, MANY), url=URLS, path=PATHS)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_one_odd_value_among_right_ones(entry: Any, url: Any, path: str) -> None:
    """Most manifests of the test above have several mistakes, so that the parser refuses them for another one."""
    odd = [{**FILE, key: value} for key, value in entry.items() if key not in ("urls", "files")]
    odd += [{**FILE, "urls": [url]}, {**FILE, "file": path}, {**FOLDER, "urls": [url]}]
    odd += [{**FOLDER, "files": {path: {"sha256": A}}}]
    for each in odd:
        data = {"checkpoints": {"c": each}}
        assert passes(data) or not is_loaded(data), each
