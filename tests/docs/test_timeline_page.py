"""The page about the seconds of a cold start: its app runs as it stands in a container, and its line and JSON agree."""

from __future__ import annotations

import json
import re
from pathlib import Path

from control_plane import ControlPlane, needs_namespaces
from origin import Origin
from support import blob, one, toml_of

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/find-where-the-seconds-go.md"
DATA = blob(100_000)
RUN = "\n@app.local_entrypoint()\ndef main():\n    import json\n    print(json.dumps(FashionCrop().report.remote()))\n"


def block(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return str(found)


def test_the_app(origin: Origin, tmp_path: Path) -> None:
    needs_namespaces()
    origin.put("/a", DATA)
    toml_of(one(DATA, origin.url("/a")), tmp_path / "weights.toml")
    (tmp_path / "app.py").write_text(block("python") + RUN)
    with ControlPlane(tmp_path / "plane") as plane:
        done = plane.client("-m", "modal", "run", "app.py", directory=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("{")]
    told = json.loads(line)
    assert {"inspect", "reload", "download", "commit", "read"} <= set(told["phases"])
    assert told["phases"]["download"]["bytes"] == told["phases"]["read"]["bytes"] == len(DATA)
    assert told["before"] > 0
    assert (done.stdout + done.stderr).count("weightcache: ready after") == 1  # by the container, not by this machine


def test_the_line_and_the_json_are_of_one_start() -> None:
    told = json.loads(block("json"))
    [line] = re.findall(r"^weightcache: ready after (.*)$", PAGE.read_text(), re.MULTILINE)
    assert line.startswith(f"{told['ready']:.2f} s: ")
    for name, phase in told["phases"].items():
        assert f"{name} " in line
        assert phase["seconds"] + phase["parallel_seconds"] > 0
    assert abs(sum(phase["seconds"] for phase in told["phases"].values()) + told["other"] - told["ready"]) < 0.01
    assert told["other"] <= 0.05 * told["ready"]
