"""Random manifests, faults and partials: always the right bytes or an error, never anything else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from origin import Origin, broken, hang_up, other_bytes, wrong_part
from origin import status as answer
from support import one, partials, sha256, visible
from weightcache import DownloadError, Manifest, ManifestError, ensure, status
from weightcache._store.partial_directory import BLOCK
from weightcache.manifest.validate import path_problem

EXAMPLES = settings().max_examples  # 100, unless `make mutants` asks for fewer

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
hexadecimal = st.text("0123456789abcdef", min_size=64, max_size=64)
entry = st.dictionaries(
    st.sampled_from(["urls", "sha256", "size", "file", "files", "auth", "other"]),
    json_like | hexadecimal | st.lists(st.sampled_from(["https://h/x", "file:///x", "hf://a/b@main"]), max_size=2),
    max_size=6,
)


@settings(max_examples=EXAMPLES)
@given(
    st.dictionaries(st.text(max_size=5) | st.just("version"), json_like)
    | st.builds(
        lambda c: {"checkpoints": c}, st.dictionaries(st.text(min_size=1, max_size=5), entry, min_size=1, max_size=3)
    )
)
def test_any_mapping_is_a_manifest_or_a_manifest_error(data: dict[str, object]) -> None:
    try:
        manifest = Manifest.load(data)
    except ManifestError as error:
        assert error.problems
        assert all(": " in problem for problem in error.problems)
    else:
        assert manifest.checkpoints


@settings(max_examples=EXAMPLES)
@given(
    st.text(max_size=30) | st.lists(st.sampled_from(["a", "..", ".", "", "b\\c", "ä", "\0", "x" * 300])).map("/".join)
)
def test_a_path_without_a_problem_stays_inside(path: str) -> None:
    if path_problem(path) is None:
        assert os.path.normpath(os.path.join("/root/place", path)) == f"/root/place/{path}"
        assert path.isprintable()
        path.encode()


DATA = os.urandom(3 * BLOCK + 321)
OTHER = os.urandom(3 * BLOCK + 321)
places = st.integers(0, len(DATA))
faults = st.one_of(
    st.none(),
    places.map(broken),
    places.map(lambda at: broken(at, reset=True)),
    st.sampled_from([503, 404, 416, 200, 206]).map(answer),
    st.sampled_from([hang_up(), other_bytes(OTHER), other_bytes(OTHER, '"other"'), other_bytes(DATA[:-1])]),
    places.map(lambda at: wrong_part(f"bytes {at}-{len(DATA)}/{len(DATA)}", DATA[at : at + 10])),
)
harm = st.tuples(st.sampled_from(["data", "journal"]), st.sampled_from(["flip", "cut", "zero"]), places)


@settings(max_examples=EXAMPLES * 3 // 5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequence=st.lists(faults, max_size=6),
    ranges=st.booleans(),
    size=st.booleans(),
    harms=st.lists(harm, max_size=3),
    foreign=st.booleans(),
)
def test_whatever_happens_the_bytes_are_right(
    sequence: list, ranges: bool, size: bool, harms: list[tuple[str, str, int]], foreign: bool, origin: Origin
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        origin.put("/a", DATA, faults=list(sequence), ranges=ranges)
        manifest = one(DATA, origin.url("/a"), size=size)
        for _ in range(len(sequence) + 2):
            try:
                weights = ensure(manifest, root=root, progress=False)
            except DownloadError:
                assert visible(root) == []
                for path in partials(root):
                    damage(path, harms)
                    if foreign:
                        path.rename(path.with_name(f"{sha256(DATA)}.0123456789ab-1-1-{os.urandom(4).hex()}"))
            else:
                assert weights["sam2"].read_bytes() == DATA
                assert status(manifest, root=root)[0].state == "ready"
                return
        pytest.fail("it never came to an end")


def damage(partial: Path, harms: list[tuple[str, str, int]]) -> None:
    for what, how, at in harms:
        path = partial / ("journal" if what == "journal" else sha256(DATA))
        if not path.exists() or not (size := path.stat().st_size):
            continue
        position = at % size
        if how == "cut":
            os.truncate(path, position)
            continue
        with open(path, "r+b") as stream:
            stream.seek(position)
            old = stream.read(1)
            stream.seek(position)
            stream.write(b"\0" if how == "zero" else bytes([old[0] ^ 1]))
