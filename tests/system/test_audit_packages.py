"""`make audit` fails where it finds something, and where it could not find anything."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("audit_packages.py")
# Stands in for pip-audit: prints what the test says for the known vulnerability, for pins, and for the environment.
STAND_IN = """
import json, os, sys
service, said = sys.argv[sys.argv.index("-s") + 1], json.loads(os.environ["SAID"])
found = said["environment"]
if "-r" in sys.argv:
    asked = open(sys.argv[sys.argv.index("-r") + 1]).read()
    names = [each.partition("==")[0] for each in asked.split()]
    found = said[service] if "jinja2" in asked else [each for each in said["pins"] if each["name"] in names]
if found is None:
    sys.exit("no route to host")
print(json.dumps({"dependencies": found}))
"""
KNOWN = [{"name": "jinja2", "version": "2.4.1", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]}]}]
UNKNOWN = [{"name": "jinja2", "skip_reason": "Dependency not found on PyPI and could not be audited: jinja2 (2.4.1)"}]
INSTALLED = ("requests", "urllib3", "filelock", "tqdm", "modal", "huggingface_hub", "tomlkit", "cryptography", "shtab")
EDITABLE = {"name": "weightcache", "skip_reason": "distribution marked as editable"}
GOOD = [*({"name": name, "version": "1", "vulns": []} for name in INSTALLED), EDITABLE]
PINS: list[dict[str, Any]] = [{"name": name, "version": "1", "vulns": []} for name in ("torch", "safetensors")]
BAD = {"name": "torch", "version": "2.13.0", "vulns": [{"id": "CVE-2099-1", "fix_versions": ["9"]}]}
LOCAL = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0+cpu)"}


@pytest.mark.parametrize(
    ("pypi", "osv", "pins", "environment", "code", "says"),
    [
        (KNOWN, None, PINS, GOOD, 0, "11 packages were checked against the advisories of pypi"),
        (None, KNOWN, PINS, GOOD, 0, "11 packages were checked against the advisories of osv"),
        (KNOWN, None, PINS, [*GOOD, LOCAL], 0, "11 packages"),
        (KNOWN, None, PINS, [*GOOD, *KNOWN], 1, "jinja2 2.4.1: PYSEC-2019-217, fixed in ['2.10.1']"),
        (KNOWN, None, PINS, [*GOOD, *UNKNOWN], 1, "jinja2: not checked: Dependency not found"),
        (KNOWN, None, [BAD, PINS[1]], GOOD, 1, "torch 2.13.0: CVE-2099-1, fixed in ['9']"),
        (KNOWN, None, PINS[:1], GOOD, 1, "safetensors: not checked: it is not installed here"),
        *(
            (KNOWN, None, PINS, [each for each in GOOD if each["name"] != name], 1, f"{name.replace('_', '-')}: not ch")
            for name in INSTALLED
        ),
        (KNOWN, None, PINS, None, 1, "pip-audit with pypi: no route to host"),
        (UNKNOWN, None, PINS, GOOD, 2, "cannot audit here: no advisories"),
        ([{**KNOWN[0], "vulns": []}], UNKNOWN, PINS, GOOD, 2, "cannot audit here: no advisories"),
    ],
)
def test_what_it_exits_with(
    pypi: Any, osv: Any, pins: Any, environment: Any, code: int, says: str, tmp_path: Path
) -> None:
    (tmp_path / "pip_audit.py").write_text(STAND_IN)
    said = json.dumps({"pypi": pypi, "osv": osv, "pins": pins, "environment": environment})
    env = {"PYTHONPATH": str(tmp_path), "SAID": said}
    done = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True)
    assert (done.returncode, says in done.stdout, done.stderr) == (code, True, ""), done.stdout


def test_what_is_looked_up_is_installed_or_named() -> None:
    """The rule `.audit` of the Makefile installs every extra that the program expects but the large one."""
    program = runpy.run_path(str(SCRIPT))
    [extras] = re.findall(r"^\.venv/\.audit:.*\n.*'\.\[(.*)\]'$", (SCRIPT.parents[2] / "Makefile").read_text(), re.M)
    assert set(extras.split(",")) == {"audit", *program["EXTRAS"]} - {"torch"}
    pins, wanted = program["requirements"]()
    assert {program["name_of"](pin) for pin in pins} == set(program["LARGE"])
    assert all(re.fullmatch(r"[a-z]+==[0-9.]+", pin) for pin in pins)
    assert wanted == {name.replace("_", "-") for name in INSTALLED} | set(program["LARGE"])
