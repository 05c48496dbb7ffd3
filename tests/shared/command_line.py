"""The command line in this process: its exit code, stdout and stderr."""

from __future__ import annotations

from typing import Any

import pytest

from weightcache.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    try:
        code = main([str(word) for word in words])
    except SystemExit as end:
        code = int(end.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err
