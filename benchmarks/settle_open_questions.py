"""Run on Modal what answers the open questions of docs/volumes.md, and write one file to attach to an issue.

    pip install -e '.[modal]' && modal setup
    python benchmarks/settle_open_questions.py

An estimate of its time is ten minutes, most of them for containers to start; nobody measured it on Modal. For each
version of Volumes it makes a new Volume, whose name begins with weightcache-questions, and runs four commands on it:
`ensure` twice, which downloads the weights of the example (1.6 GB) and then finds them; `doctor --probe`; and `bench`.
No container has a GPU. A command that fails, or has no answer in half an hour, is an answer too. The file is written
after each command. It contains no URL, no path of this machine and no name of a Volume; read it before you attach it.
Delete the Volumes afterwards; the last lines say how.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
EXAMPLE = HERE / "examples/fashion_crop/weights.toml"
NAMES = ("groundingdino", "bert-base-uncased", "sam2-large")  # what the example loads; its manifest has more
QUESTIONS = "docs/status.md#a-script-of-ten-minutes"
LONGEST = 1800  # seconds for one command
NO_ANSWER = 124  # the exit code of one that took longer, as of timeout(1)


def run(*words: str) -> dict[str, Any]:
    """Run one command of weightcache, and return its JSON, its seconds, and what it said if it failed."""
    print("weightcache", *words, file=sys.stderr, flush=True)
    started = time.monotonic()
    command = [sys.executable, "-m", "weightcache", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return {"exit_code": NO_ANSWER, "seconds": LONGEST, "errors": f"no answer in {LONGEST} s"}
    found: dict[str, Any] = {"exit_code": done.returncode, "seconds": round(time.monotonic() - started, 1)}
    try:
        found["result"] = json.loads(done.stdout)
    except ValueError:
        found["said"] = done.stdout[-2000:]
    if done.returncode:
        found["errors"] = own_lines(done.stderr)[-2000:]
    return found


def own_lines(text: str) -> str:
    """Return the messages of weightcache, with their hints: the other lines are Modal's, and may name the account."""
    kept: list[str] = []
    follows = False  # a line belongs to the message before it
    for line in text.splitlines():
        follows = line.startswith("weightcache") or (follows and line.startswith("  "))
        if follows:
            kept.append(line)
    return "\n".join(kept)


def shareable(value: Any, names: dict[str, str]) -> Any:
    """Return the value without URLs and Modal's ids, and with a word for each of these names, also inside others."""
    if isinstance(value, dict):
        return {key: shareable(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [shareable(each, names) for each in value]
    if not isinstance(value, str):
        return value
    value = re.sub(r"https?://\S+", "URL", value)
    value = re.sub(r"\b[a-z]{2}-[0-9A-Za-z]{16,}", "ID", value)
    for name in sorted(names, key=len, reverse=True):  # the repository may be in the home folder
        value = value.replace(name, names[name])
    return value


def versions(text: str) -> list[str]:
    """Return the versions that a value of ``--versions`` names."""
    named = text.split(",")
    if not set(named) <= {"1", "2"}:
        raise argparse.ArgumentTypeError(f"{text!r} is not 1, 2 or 1,2")
    return list(dict.fromkeys(named))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Answer on Modal what docs/volumes.md calls unknown.")
    parser.add_argument("--manifest", type=Path, metavar="FILE", help="all of its weights, instead of the example's")
    parser.add_argument("--versions", type=versions, default=["1", "2"], metavar="1,2", help="of Volumes, to try")
    parser.add_argument("--name", default="weightcache-questions", help="how the names of the Volumes begin")
    parser.add_argument("--size", default="1500", metavar="MB", help="how much `bench` reads at most")
    parser.add_argument("--out", type=Path, default=Path("open-questions.json"), metavar="FILE")
    options = parser.parse_args(argv)
    manifest = options.manifest or EXAMPLE
    selected = () if options.manifest else NAMES
    hidden = {str(manifest): "MANIFEST", str(manifest.resolve()): "MANIFEST", str(HERE): "REPOSITORY"}
    if Path.home() != Path("/"):
        hidden[str(Path.home())] = "HOME"
    found: dict[str, dict[str, Any]] = {}

    def save() -> None:
        told = {"python": platform.python_version(), "system": platform.system(), "volumes": shareable(found, hidden)}
        options.out.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    try:
        save()  # before minutes are spent on what cannot be written
    except OSError as error:
        parser.error(f"cannot write --out {options.out}: {error.strerror}")
    nonce = secrets.token_hex(4)  # so that each Volume is new: an older one might have the weights
    made: list[str] = []
    try:
        for version in options.versions:
            volume = f"{options.name}-{nonce}-v{version}"
            made.append(volume)
            hidden[volume] = "NAME"
            on = ("--volume", volume)
            where = ("--create", "--version", version, "-m", str(manifest), "--json", "--quiet")
            answers = found[version] = {}
            for key, words in (
                ("first_ensure", ("ensure", *selected, *on, *where)),
                ("second_ensure", ("ensure", *selected, *on, *where)),
                ("probe", ("doctor", *on, "--probe")),
                ("bench", ("bench", *on, "--size", options.size, "--json")),
            ):
                answers[key] = run(*words)
                save()
        print(f"{options.out}: read it, and attach it to an issue; {QUESTIONS} says which line answers what")
    finally:
        for volume in made:
            print(f"modal volume delete {volume}")
    return 1 if any(each["exit_code"] for answers in found.values() for each in answers.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
