"""Look for known vulnerabilities in the packages of this environment, with pip-audit: ``make audit``.

The environment has the requirements of the package and of those extras that a user installs, except PyTorch and
safetensors: PyTorch is gigabytes. Both are looked up by the version that the tests run with. A requirement that is in
neither fails the command, because nobody looked it up.

pip-audit says "No known vulnerabilities found" as well where it can read no advisories, for example behind an index of
packages that has none. So it must first find a vulnerability that is known. Where it does not, this exits with 2.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
# The other extras are for the development of this package.
EXTRAS = ("hf", "modal", "torch", "completion", "tool", "sign")
LARGE = ("safetensors", "torch")  # not installed; the extra `transformers` has the versions of the tests
KNOWN = "jinja2==2.4.1"  # PYSEC-2014-8, PYSEC-2019-217 and others; it is not installed, only looked up
SERVICES = ("pypi", "osv")  # where advisories come from; the first one that has any is asked


def audit(service: str, *options: str) -> list[dict[str, Any]] | None:
    """Return what pip-audit says of each package; ``None`` if it fails."""
    command = [sys.executable, "-m", "pip_audit", "-s", service, "-f", "json", "--progress-spinner", "off", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        print(f"pip-audit with {service}: {(done.stderr.strip().splitlines() or ['it printed nothing'])[-1]}")
        return None
    return found


def audit_pins(service: str, *pins: str) -> list[dict[str, Any]]:
    """Return what pip-audit says of versions that need not be installed, without what they require."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "requirements.txt")
        path.write_text("\n".join(pins))
        return audit(service, "-r", str(path), "--no-deps", "--disable-pip") or []


def knows_advisories(service: str) -> bool:
    return any(each.get("vulns") for each in audit_pins(service, KNOWN))


def name_of(requirement: str) -> str:
    """Return the name in a requirement, as PyPI compares names."""
    return re.sub("[-_.]+", "-", re.split("[^A-Za-z0-9._-]", requirement)[0]).lower()


def requirements() -> tuple[list[str], set[str]]:
    """Return the pins of what is `LARGE`, and the names of all requirements of a user."""
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text("utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    pins = [each for each in extras["transformers"] if name_of(each) in LARGE]
    here = [each for each in project["dependencies"] if ";" not in each]  # not those of some versions of Python only
    return pins, {name_of(each) for each in (*here, *(one for extra in EXTRAS for one in extras[extra]))}


def main() -> int:
    """Print what is found; 0 if nothing is, 1 if something is vulnerable or was not checked, 2 without advisories."""
    service = next(filter(knows_advisories, SERVICES), None)
    if service is None:
        print(
            f"cannot audit here: no advisories (nothing is known of {KNOWN}, which has some); this needs the internet"
        )
        return 2
    pins, wanted = requirements()
    # PyTorch may be installed as a wheel of its own index, whose version PyPI does not know.
    installed = [each for each in audit(service, "--skip-editable") or [] if each["name"] not in LARGE]
    packages = [*installed, *audit_pins(service, *pins)]
    for each in packages:
        for vulnerability in each.get("vulns", []):
            print(f"{each['name']} {each['version']}: {vulnerability['id']}, fixed in {vulnerability['fix_versions']}")
        if "skip_reason" in each:
            print(f"{each['name']}: not checked: {each['skip_reason']}")
    checked = [each for each in packages if "vulns" in each]
    missing = sorted(wanted - {name_of(each["name"]) for each in packages})
    for name in missing:
        print(f"{name}: not checked: it is not installed here")
    print(f"{len(checked)} packages were checked against the advisories of {service}")
    skipped = [each for each in packages if "skip_reason" in each and "editable" not in each["skip_reason"]]
    return 1 if missing or skipped or any(each["vulns"] for each in checked) else 0


if __name__ == "__main__":
    sys.exit(main())
