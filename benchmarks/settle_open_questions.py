"""Run on Modal what answers the open questions of docs/volumes.md, and write one file to attach to an issue.

    pip install -e '.[modal]' && modal setup
    python benchmarks/settle_open_questions.py

It takes about ten minutes, most of them for containers to start. For each version of Volumes it makes a Volume called
weightcache-questions-v1 or -v2, and runs four commands on it: `ensure` twice, which downloads the weights of a manifest
and then finds them; `doctor --probe`; and `bench`. No container has a GPU. The file contains neither the account nor
the name of a Volume. A command that fails is an answer too. Delete the Volumes afterwards; the last lines say how.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
QUESTIONS = "docs/status.md#a-script-of-ten-minutes"


def run(*words: str) -> dict[str, Any]:
    """Run one command of weightcache, and return its JSON, its seconds, and what it said if it failed."""
    print("weightcache", *words, file=sys.stderr, flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "weightcache", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, Any] = {"exit_code": done.returncode, "seconds": round(time.monotonic() - started, 1)}
    try:
        found["result"] = json.loads(done.stdout)
    except ValueError:
        found["said"] = done.stdout[-2000:]
    if done.returncode:
        found["errors"] = done.stderr[-2000:]
    return found


def answers(volume: str, version: str, manifest: str, size: str) -> dict[str, Any]:
    """Return what each command answered on a Volume of this version."""
    on = ("--volume", volume)
    ensure = ("ensure", *on, "--create", "--version", version, "-m", manifest, "--json", "--quiet")
    return {
        "first_ensure": run(*ensure),
        "second_ensure": run(*ensure),
        "probe": run("doctor", *on, "--probe"),
        "bench": run("bench", *on, "--size", size, "--json"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Answer on Modal what docs/volumes.md calls unknown.")
    parser.add_argument("--manifest", default=str(HERE / "examples/fashion_crop/weights.toml"), metavar="FILE")
    parser.add_argument("--versions", default="1,2", metavar="1,2", help="the versions of Volumes to try")
    parser.add_argument("--name", default="weightcache-questions", help="how the names of the Volumes begin")
    parser.add_argument("--size", default="1500", metavar="MB", help="how much `bench` reads at most")
    parser.add_argument("--out", type=Path, default=Path("open-questions.json"), metavar="FILE")
    options = parser.parse_args()
    volumes = {version: f"{options.name}-v{version}" for version in options.versions.split(",")}
    found = {version: answers(volume, version, options.manifest, options.size) for version, volume in volumes.items()}
    text = json.dumps(
        {"python": platform.python_version(), "system": platform.system(), "volumes": found},
        indent=1,
        ensure_ascii=False,
    )
    for volume in volumes.values():
        text = text.replace(volume, "NAME")
    options.out.write_text(text + "\n", encoding="utf-8")
    print(f"{options.out}: read it, and attach it to an issue; {QUESTIONS} says which line answers what")
    for volume in volumes.values():
        print(f"modal volume delete {volume}")
    return max((each["exit_code"] for commands in found.values() for each in commands.values()), default=0)


if __name__ == "__main__":
    sys.exit(main())
