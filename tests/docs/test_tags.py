"""The page about serving what was trained last: its two apps, in containers that already run, and its commands."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from modal._serialization import deserialize, serialize
from modal_proto import api_pb2 as pb

from control_plane import ControlPlane, needs_namespaces
from control_plane_state import Container
from shell import commands, shell
from support import directory, until
from weightcache import Manifest

HERE = Path(__file__).resolve().parents[2]
PAGES = ("serve-what-was-trained-last.md", "roll-back-a-tag.md")
PAGE = "".join((HERE / "docs/how-to" / name).read_text() for name in PAGES)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def call(plane: ControlPlane, container: Container, text: str) -> str:
    """Call the method of the page in a container that already runs, as Modal does for the next request."""
    count = len(container.outputs)
    given = pb.FunctionInput(args=serialize(((text,), {})), data_format=pb.DATA_FORMAT_PICKLE, method_name="tag")
    call_id = f"in-{count}"
    container.inputs.append(pb.FunctionGetInputsItem(input_id=call_id, function_call_id=call_id, input=given))
    plane._tell()
    process = container.process
    assert process is not None
    until(lambda: len(container.outputs) > count or process.poll() is not None)
    assert len(container.outputs) > count, container.log
    result = container.outputs[-1].result
    assert result.status == pb.GenericResult.GENERIC_STATUS_SUCCESS, container.log
    return str(deserialize(result.data, None))


@pytest.mark.crash
@pytest.mark.timeout(600)  # it starts modal a dozen times
def test_the_page_runs(tmp_path: Path) -> None:
    needs_namespaces()
    train, serve = blocks("python")
    (tmp_path / "train.py").write_text(train)
    (tmp_path / "serve.py").write_text(serve.replace('Tag("tagger")', 'Tag("tagger", poll=0)'))  # do not wait 10 s
    tools = commands(tmp_path / "bin", "modal", "weightcache")

    with ControlPlane(tmp_path / "plane") as plane:
        environment = plane.outside() | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(HERE)}

        def run(text: str, **more: str) -> str:
            done = shell(text, tmp_path, environment | more)
            assert done.returncode == 0, done.stdout + done.stderr + "".join(each.log for each in plane.containers)
            return done.stdout

        first_training, deploy, second_training = blocks("sh")[0].splitlines()
        run(first_training)
        run(deploy)
        [(function, app)] = [
            (number, app)
            for app, names in plane._app_functions.items()
            for name, number in names.items()
            if name == "Tagger.*"
        ]
        serving = plane.start_container(function, app, [], is_serving=True)
        assert call(plane, serving, "a") == "a: trained for 1000 steps"
        run(second_training)
        assert call(plane, serving, "b") == "b: trained for 2000 steps"

        listing, moving = (line.partition("#")[0] for line in blocks("sh")[1].splitlines())
        found = re.findall(r"^tagger  newest  ([0-9a-f]{16})  .*Z(.*)$", run(listing), re.MULTILINE)
        assert [mark.strip() for _, mark in found] == ["current, keep 3", ""]
        run(moving, VERSION=found[1][0])
        assert call(plane, serving, "c") == "c: trained for 1000 steps"
        assert serving.process is not None
        assert serving.process.poll() is None  # it was one container all the time

        assert run(blocks("sh")[2]) == "nothing to delete\n" * 2
        assert "  ready  " in run(blocks("sh")[3])
        trained = tmp_path / "runs/7/tagger"
        trained.mkdir(parents=True)
        (trained / "labels.txt").write_text("trained by hand")
        version = Manifest.load(directory({"labels.txt": b"trained by hand"}, name="tagger"))["tagger"].version
        run(blocks("sh")[4], VERSION=version)
        assert call(plane, serving, "d") == "d: trained by hand"
        run(blocks("sh")[5], VERSION=version)
        assert "canary" not in run("weightcache tag --volume my-models")
        assert plane.stop(serving) == 0
