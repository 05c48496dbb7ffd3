"""`ensure` where Python is ending: in `atexit`, and in a thread that outlives the main one."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import pytest

from origin import Origin
from support import blob, child, finish, one

DATA = blob(3_000_000)
CALL = """
import atexit, threading
from weightcache import WeightCacheError
def call():
    try:
        weights = ensure(json.loads(sys.argv[1]), root=sys.argv[2], progress=False)
        print("ok", weights["sam2"].stat().st_size, flush=True)
    except WeightCacheError as error:
        print("ours", bool(error.hint), flush=True)
    except BaseException as error:
        print("raw", repr(error), flush=True)
"""
WAYS = {
    "atexit": "atexit.register(call)",
    "a thread after the main one": (
        "threading.Thread(target=lambda: (threading.main_thread().join(), call())).start()"
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_miss_while_python_ends(way: str, scheme: str, origin: Origin, root: Path, tmp_path: Path) -> None:
    """From Python 3.12 on no thread can be started then, and a download needs one: that is an error of ours."""
    origin.put("/a", DATA)
    (tmp_path / "a").write_bytes(DATA)
    manifest = one(DATA, origin.url("/a") if scheme == "http" else (tmp_path / "a").as_uri())
    assert finish(child(CALL + WAYS[way], json.dumps(manifest), str(root))) in (f"ok {len(DATA)}\n", "ours True\n")


@pytest.mark.parametrize("way", WAYS)
def test_what_is_there_is_adopted_and_hit_while_python_ends(way: str, root: Path) -> None:
    """Hashing needs no other thread."""
    manifest = one(DATA)
    place = root / "sam2" / manifest["checkpoints"]["sam2"]["sha256"][:16]
    place.mkdir(parents=True)
    (place / "weights.pt").write_bytes(DATA)
    for _ in range(2):
        assert finish(child(CALL + WAYS[way], json.dumps(manifest), str(root))) == f"ok {len(DATA)}\n"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="earlier ones abort when a subinterpreter with threads ends")
def test_a_miss_and_a_hit_in_a_subinterpreter(root: Path, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(DATA)
    manifest = one(DATA, (tmp_path / "a").as_uri())
    code = """
    import _interpreters
    one = _interpreters.create()
    inside = f'''
    import json
    from weightcache import ensure
    for _ in range(2):
        weights = ensure(json.loads({sys.argv[1]!r}), root={sys.argv[2]!r}, progress=False)
        print(weights.report["sam2"].outcome, flush=True)
    '''
    problem = _interpreters.exec(one, textwrap.dedent(inside))
    assert problem is None, problem
    _interpreters.destroy(one)
    """
    assert (
        finish(child("import textwrap\n" + textwrap.dedent(code), json.dumps(manifest), str(root)))
        == "downloaded\nhit\n"
    )
