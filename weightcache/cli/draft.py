"""Entries of a manifest that may still lack pins, as `add` and `pin` find them.

What lacks is filled with placeholders and given to `Manifest.load`, so that everything else in such a file is checked
by the one set of rules.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from weightcache.errors import ManifestError, UnknownCheckpointError
from weightcache.manifest import Checkpoint, File, Manifest
from weightcache.manifest.urls import is_commit, parse_hub_url

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

UNKNOWN = "0" * 64  # stands for a digest while everything else is checked
_NO_COMMIT = "0" * 40


@dataclass(frozen=True)
class HubUrl:
    """An ``hf://`` URL, perhaps of a branch or tag.

    Attributes:
        repository: ``NAME`` or ``ORG/NAME``.
        revision: A branch, a tag or a commit.
        path: A file, or the base of a directory; empty for the whole repository.
    """

    repository: str
    revision: str = "main"
    path: str = ""

    @classmethod
    def parse(cls, url: str) -> HubUrl | None:
        """Return what an ``hf://`` URL says, or ``None`` for any other one."""
        if not (found := parse_hub_url(url)):
            return None
        repository, revision, path = found
        return cls(repository, unquote(revision or "main"), path)

    @property
    def is_pinned(self) -> bool:
        """Whether it names a commit."""
        return is_commit(self.revision)

    def inside(self, path: str, *, is_directory: bool) -> str:
        """Return where in the repository a file of the checkpoint is."""
        if not is_directory:
            return self.path
        return f"{self.path}/{path}" if self.path else path

    def at(self, revision: str) -> str:
        """Return the URL of the same thing at another revision."""
        return f"hf://{self.repository}@{quote(revision, safe='')}{f'/{self.path}' if self.path else ''}"


@dataclass
class Pin:
    """What is known of one file.

    Attributes:
        sha256: Its digest; empty if it is not known.
        size: Its length in bytes, if known.
        evidence: Where the digest comes from, in words.
        foreign: What its bytes are, if they are no weights but were expected; empty otherwise.
        head: Its first bytes, if they were read and judged.
        suggested_name: What its mirror calls it; empty if it does not say.
        is_published: Whether the Hub publishes the digest, and nothing was downloaded for it.
    """

    sha256: str = ""
    size: int | None = None
    evidence: str = "the manifest"
    foreign: str = ""
    head: bytes | None = None
    suggested_name: str = ""
    is_published: bool = False


@dataclass
class Draft:
    """One checkpoint on its way to be pinned.

    Attributes:
        pins: By path. Of a single file there is one, under the name that it will be published by.
        knows_files: Whether ``pins`` lists every file. A single file always does.
        warnings: What the user should know, and what stops nothing.
    """

    name: str
    urls: list[str]
    auth: str | None = None
    is_directory: bool = False
    pins: dict[str, Pin] = field(default_factory=dict)
    knows_files: bool = True
    warnings: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Say it now, and once more in the result."""
        self.warnings.append(text)
        print(f"weightcache: {self.name}: {text}", file=sys.stderr)

    def unpinned(self) -> list[str]:
        """Say what keeps `ensure` from taking it."""
        branches = [url for url in self.urls if (hub := HubUrl.parse(url)) and not hub.is_pinned]
        lacking = [f"the commit of {url}" for url in branches]
        if not self.knows_files:
            lacking.append("the list of its files")
        return lacking + [f"the sha256 of {path}" for path, pin in self.pins.items() if not pin.sha256]

    @property
    def takes_names(self) -> bool:
        """Whether its mirrors may know a name for its file. A path on the Hub has one."""
        return not self.is_directory and not any(map(HubUrl.parse, self.urls))

    def lacks_sizes(self) -> bool:
        return any(pin.size is None for pin in self.pins.values())

    def checkpoint(self) -> Checkpoint:
        """Return the pinned checkpoint."""
        files = tuple(File(path, pin.sha256, pin.size) for path, pin in sorted(self.pins.items()))
        return Checkpoint(self.name, tuple(self.urls), files, self.is_directory, self.auth)

    def placeholder(self) -> Checkpoint:
        """Return it as a checkpoint whose unknown digests are `UNKNOWN`, for what needs one before it is pinned."""
        files = tuple(File(path, pin.sha256 or UNKNOWN, pin.size) for path, pin in self.pins.items())
        return Checkpoint(self.name, tuple(self.urls), files or (File("-", UNKNOWN),), self.is_directory, self.auth)

    def check(self, source: str) -> None:
        """Hold it against the rules of a manifest: what the Hub or a list says is as little to be trusted as any input.

        Raises:
            ManifestError: It breaks one. A path such as ``../x`` would otherwise be written to.
        """
        checkpoint = self.placeholder()
        pins = {
            file.path: {"sha256": file.sha256} | ({} if file.size is None else {"size": file.size})
            for file in checkpoint.files
        }
        entry: dict[str, Any] = {"urls": [hub.at(_NO_COMMIT) if (hub := _branch(url)) else url for url in self.urls]}
        if self.is_directory:
            entry["files"] = pins
        else:
            [(path, pin)] = pins.items()
            entry |= {"file": path, **pin}
        try:
            Manifest.load({"checkpoints": {self.name: entry}})
        except ManifestError as error:
            refused = ManifestError(source, error.problems)
            refused.hint = (
                "nothing was changed; leave out what is named above (of the Hub: --exclude), or ask the publisher"
            )
            raise refused from None


def drafts(raw: Mapping[str, Any], source: str) -> list[Draft]:
    """Return every entry of a manifest, pinned or not.

    Raises:
        ManifestError: Something is wrong besides what lacks.
    """
    entries = raw.get("checkpoints")
    filled = dict(raw)
    if isinstance(entries, Mapping):
        filled["checkpoints"] = {name: _filled(entry) for name, entry in entries.items()}
    try:
        manifest = Manifest.load(filled)
    except ManifestError as error:
        raise ManifestError(source, error.problems) from None
    return [_draft(checkpoint, raw["checkpoints"][checkpoint.name]) for checkpoint in manifest]


def select(found: Sequence[Draft], names: Collection[str]) -> list[Draft]:
    """Return those of ``names``, or all for none; in the manifest's order.

    Raises:
        UnknownCheckpointError: A name is not declared.
    """
    known, wanted = {draft.name: draft for draft in found}, set(names)
    for name in names:
        if name not in known:
            raise UnknownCheckpointError(name, known)
    return [draft for name, draft in known.items() if not wanted or name in wanted]


def _filled(entry: object) -> object:
    """Return an entry with placeholders for what `pin` can complete; what is wrong stays as wrong as it is."""
    if not isinstance(entry, Mapping):
        return entry
    filled = dict(entry)
    urls = entry.get("urls")
    if isinstance(urls, list):
        filled["urls"] = [hub.at(_NO_COMMIT) if (hub := _branch(url)) else url for url in urls]
    if _lists_nothing(entry):
        filled["files"] = {"-": {"sha256": UNKNOWN}}
    elif "files" not in entry:
        filled.setdefault("sha256", UNKNOWN)
    elif isinstance(entry["files"], Mapping):
        filled["files"] = {
            path: {"sha256": UNKNOWN, **pin} if isinstance(pin, Mapping) else pin
            for path, pin in entry["files"].items()
        }
    return filled


def _branch(url: object) -> HubUrl | None:
    hub = HubUrl.parse(url) if isinstance(url, str) else None
    return None if hub is None or hub.is_pinned else hub


def _lists_nothing(entry: Mapping[str, Any]) -> bool:
    """Whether it is a repository of the Hub whose files are not listed yet."""
    urls = entry.get("urls")
    hubs = (
        [hub for url in urls if isinstance(url, str) and (hub := HubUrl.parse(url))] if isinstance(urls, list) else []
    )
    return bool(hubs) and not hubs[0].path and not {"files", "sha256", "file"} & set(entry)


def _draft(checkpoint: Checkpoint, entry: Mapping[str, Any]) -> Draft:
    knows = not _lists_nothing(entry)
    declared = entry.get("files", {}) if checkpoint.is_directory else {checkpoint.files[0].path: entry}
    pins = {
        file.path: Pin(file.sha256 if "sha256" in declared[file.path] else "", file.size)
        for file in checkpoint.files
        if knows
    }
    return Draft(checkpoint.name, list(entry["urls"]), checkpoint.auth, checkpoint.is_directory, pins, knows)
