"""Look for known vulnerabilities in the packages of this environment, with pip-audit: ``make audit``.

pip-audit says "No known vulnerabilities found" as well where it can read no advisories, for example behind an index of
packages that has none. So it must first find a vulnerability that is known. Where it does not, this exits with 2.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

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


def knows_advisories(service: str) -> bool:
    with TemporaryDirectory() as folder:
        path = Path(folder, "requirements.txt")
        path.write_text(f"{KNOWN}\n")
        found = audit(service, "-r", str(path), "--no-deps", "--disable-pip")
    return any(each.get("vulns") for each in found or [])


def main() -> int:
    """Print what is found; 0 if nothing is, 1 if something is vulnerable or was not checked, 2 without advisories."""
    service = next(filter(knows_advisories, SERVICES), None)
    if service is None:
        print(
            f"cannot audit here: no advisories (nothing is known of {KNOWN}, which has some); this needs the internet"
        )
        return 2
    packages = audit(service, "--skip-editable")
    for each in packages or []:
        for vulnerability in each.get("vulns", []):
            print(f"{each['name']} {each['version']}: {vulnerability['id']}, fixed in {vulnerability['fix_versions']}")
        if "skip_reason" in each:
            print(f"{each['name']}: not checked: {each['skip_reason']}")
    checked = [each for each in packages or [] if "vulns" in each]
    print(f"{len(checked)} packages were checked against the advisories of {service}")
    skipped = [each for each in packages or [] if "skip_reason" in each and "editable" not in each["skip_reason"]]
    return 1 if not checked or skipped or any(each["vulns"] for each in checked) else 0


if __name__ == "__main__":
    sys.exit(main())
