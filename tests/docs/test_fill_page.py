"""The page about filling a Volume at deploy: its code is deployed and run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from control_plane import ControlPlane, needs_namespaces
from origin import Origin
from support import blob, one, toml_of

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/fill-a-volume-at-deploy.md"
DATA = blob(100_000)
USE = "\n@app.function(image=image)\ndef {name}():\n    pass\n\n"
RUN = "\n@app.local_entrypoint()\ndef main():\n    print(FashionCrop().outcomes.remote())\n"


def test_the_page(origin: Origin, tmp_path: Path) -> None:
    needs_namespaces()
    origin.put("/a", DATA)
    toml_of(one(DATA, origin.url("/a")), tmp_path / "weights.toml")
    first, limits, order = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = first + USE.format(name="first") + limits + USE.format(name="limited") + order + USE.format(name="ordered")
    (tmp_path / "app.py").write_text(code + RUN)
    with ControlPlane(tmp_path / "plane") as plane:
        plane.secret("huggingface", HF_TOKEN="hush")

        def client(command: str) -> str:
            done = plane.client("-m", "modal", command, "app.py", directory=tmp_path)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        assert "weightcache: sam2: downloaded" in client("deploy")
        sent = origin.sent()
        assert "{'sam2': 'hit'}" in client("run")
        limited = [each.function for each in plane.requests("FunctionCreate") if each.function.timeout_secs == 7200]
        assert [(len(each.secret_ids), each.resources.milli_cpu) for each in limited[:1]] == [(1, 4000)]
    assert sent == origin.sent() == len(DATA)
