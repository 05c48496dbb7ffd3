"""`make audit` fails where it finds something, and where it could not find anything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("audit_packages.py")
# Stands in for pip-audit: prints what the test says for the known vulnerability, and for the environment.
STAND_IN = """
import json, os, sys
service, said = sys.argv[sys.argv.index("-s") + 1], json.loads(os.environ["SAID"])
found = said[service if "-r" in sys.argv else "environment"]
if found is None:
    sys.exit("no route to host")
print(json.dumps({"dependencies": found}))
"""
KNOWN = [{"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]}]}]
UNKNOWN = [{"name": "jinja2", "skip_reason": "Dependency not found on PyPI and could not be audited: jinja2 (2.4.1)"}]
GOOD = [
    {"name": "requests", "version": "2.34.2", "vulns": []},
    {"name": "weightcache", "skip_reason": "distribution marked as editable"},
]


@pytest.mark.parametrize(
    ("pypi", "osv", "environment", "code", "says"),
    [
        (KNOWN, None, GOOD, 0, "1 packages were checked against the advisories of pypi"),
        (None, KNOWN, GOOD, 0, "1 packages were checked against the advisories of osv"),
        (KNOWN, None, [*GOOD, *KNOWN], 1, "jinja2 2.4.1: PYSEC-2019-217, fixed in ['2.10.1']"),
        (KNOWN, None, [*GOOD, *UNKNOWN], 1, "jinja2: not checked: Dependency not found"),
        (KNOWN, None, GOOD[1:], 1, "0 packages"),
        (KNOWN, None, None, 1, "pip-audit with pypi: no route to host"),
        (UNKNOWN, None, GOOD, 2, "cannot audit here: no advisories"),
        ([{**KNOWN[0], "vulns": []}], UNKNOWN, GOOD, 2, "cannot audit here: no advisories"),
    ],
)
def test_what_it_exits_with(pypi: Any, osv: Any, environment: Any, code: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "pip_audit.py").write_text(STAND_IN)
    said = json.dumps({"pypi": pypi, "osv": osv, "environment": environment})
    env = {"PYTHONPATH": str(tmp_path), "SAID": said}
    done = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True)
    assert (done.returncode, says in done.stdout, done.stderr) == (code, True, ""), done.stdout
