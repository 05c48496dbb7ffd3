"""When Modal stops this container: its settings, which the container's entrypoint was started with.

Modal sets no variable for it. It names a file with the definition of the function in ``MODAL_CONTAINER_ARGUMENTS_PATH``
(modal/_container_entrypoint.py, 1.5 to 1.6), which has both timeouts. The format is private, so anything unexpected
there means that the limit is unknown.
"""

from __future__ import annotations

import os
import sys
from typing import Any, NamedTuple

from .process_start import process_age


class TimeLimit(NamedTuple):
    """How long this container or call may go on.

    Attributes:
        seconds: From now on.
        argument: What raises it: an argument of ``@app.cls`` or ``@app.function``, or one of `ensure`.
        used: Seconds that passed before now; ``argument`` counts them as well.
    """

    seconds: float
    argument: str
    used: float = 0.0


def modal_time_limit() -> TimeLimit | None:
    """Return what Modal leaves to this call; ``None`` outside a Modal Function, or where it cannot be found.

    While the container starts (imports, ``@modal.enter``), ``startup_timeout`` counts from the start of this process.
    While it handles an input, ``timeout`` counts from a time that is unknown, at the latest from now.
    """
    try:
        definition, is_input = _definition(), _is_input()
        timeout, startup = int(definition.timeout_secs), int(definition.startup_timeout_secs)
        used = process_age() or 0.0  # some versions of gVisor do not say
    except Exception:  # noqa: BLE001 (a private format; without it there is only no warning)
        return None
    if is_input:
        return TimeLimit(timeout, "timeout") if timeout else None
    # A container that is older than that has started: this is a thread of its own, or was restored from a snapshot.
    return TimeLimit(startup - used, "startup_timeout", used) if used < startup else None


def _definition() -> Any:
    protocol: Any = sys.modules["modal_proto.api_pb2"]  # the entrypoint has imported it
    arguments = protocol.ContainerArguments()
    with open(os.environ["MODAL_CONTAINER_ARGUMENTS_PATH"], "rb") as stream:
        arguments.ParseFromString(stream.read())
    return arguments.function_def


def _is_input() -> bool:
    modal: Any = sys.modules["modal"]
    return modal.current_input_id() is not None
