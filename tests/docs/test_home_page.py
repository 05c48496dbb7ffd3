"""The home page of the site: three sentences, one picture, and eight lines of code that are deployed as they stand."""

from __future__ import annotations

import re
from pathlib import Path

from control_plane import ControlPlane, needs_namespaces
from origin import Origin
from support import blob, one, toml_of

PAGE = (Path(__file__).resolve().parents[2] / "docs/index.md").read_text()
[CODE] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
DATA = blob(100_000)
CALL = """

def run_sam2(path, photo):
    return [path.read_bytes()[:5], photo]


@app.local_entrypoint()
def main():
    print(segment.remote(b"photo"))
"""


def test_what_a_reader_sees_first() -> None:
    paragraph = PAGE.split("\n\n")[1]
    assert len(re.findall(r"[.](?:\s|$)", paragraph)) == 3
    assert len(re.findall(r"^!\[", PAGE, re.MULTILINE)) == 1
    assert len([line for line in CODE.splitlines() if line]) == 8


def test_the_code(origin: Origin, tmp_path: Path) -> None:
    needs_namespaces()
    origin.put("/a", DATA)
    toml_of(one(DATA, origin.url("/a")), tmp_path / "weights.toml")
    (tmp_path / "app.py").write_text(CODE + CALL)
    with ControlPlane(tmp_path / "plane") as plane:
        done = plane.client("-m", "modal", "run", "app.py", directory=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str([DATA[:5], b"photo"]) in done.stdout
    assert origin.sent() == len(DATA)
