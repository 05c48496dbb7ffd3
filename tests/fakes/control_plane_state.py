"""What Modal's control plane of the tests knows of its containers and of the requests from the web."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from typing import Any

from volume_model import View


@dataclass(eq=False)
class Container:
    """What the plane knows of one container: its identity, its input and its result."""

    task: str
    views: dict[str, View]  # by Volume id
    function: str = ""
    app: str = ""
    port: int = 0
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    result: Any = None
    process: subprocess.Popen[str] | None = None
    log: str = ""
    is_over: bool = False  # whether it has ended and `log` is complete
    calls: list[str] = field(default_factory=list)
    is_waited_for: bool = False  # whether a caller waits for its output: then it is stopped after it
    is_serving: bool = False  # whether it waits for requests from the web, until `ControlPlane.stop`


@dataclass(eq=False)
class WebCall:
    """A request to a web function, and its answer as messages of ASGI."""

    body: bytes
    answer: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False


@dataclass(eq=False)
class Image:
    """What a container finds of an image, and how its build went."""

    env: dict[str, str] = field(default_factory=dict)  # what its ENV lines say
    files: dict[str, str] = field(default_factory=dict)  # what its COPY lines added: path → sha256
    builder: Container | None = None  # where a build function runs
    failed: bool = False
