"""The list of all commands, in the order of ``weightcache --help``."""

from __future__ import annotations

from . import add, adopt, bench, completion, doctor, ensure, pin, prune, publish, push, status, tag, verify

_WITHOUT_COMPLETION = (
    ensure.COMMAND,
    status.COMMAND,
    verify.COMMAND,
    prune.COMMAND,
    add.COMMAND,
    pin.COMMAND,
    push.COMMAND,
    publish.COMMAND,
    tag.COMMAND,
    adopt.COMMAND,
    bench.COMMAND,
    doctor.COMMAND,
)
COMMANDS = (*_WITHOUT_COMPLETION, completion.command_for(_WITHOUT_COMPLETION))
