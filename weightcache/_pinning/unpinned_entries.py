"""Checkpoints that may lack pins: entries of a manifest, or URLs that are not in one yet.

Missing pins are filled with placeholders before `Manifest.load` reads the entries, so that everything else in them is
checked by the same rules as a complete manifest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from weightcache.errors import ManifestError, UnknownCheckpointError
from weightcache.manifest import Checkpoint, File, Manifest
from weightcache.manifest.urls import is_commit, parse_hub_url

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

_log = logging.getLogger("weightcache")

UNKNOWN = "0" * 64  # the placeholder of a digest that is not known yet
_NO_COMMIT = "0" * 40


@dataclass(frozen=True)
class HubUrl:
    """An ``hf://`` URL; its revision may be a branch or tag.

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
        """Return the parts of an ``hf://`` URL, or ``None`` for any other URL."""
        if not (found := parse_hub_url(url)):
            return None
        repository, revision, path = found
        return cls(repository, unquote(revision or "main"), path)

    @property
    def is_pinned(self) -> bool:
        """Whether it names a commit."""
        return is_commit(self.revision)

    def inside(self, path: str, *, is_directory: bool) -> str:
        """Return the path in the repository of a file of the checkpoint."""
        if not is_directory:
            return self.path
        return f"{self.path}/{path}" if self.path else path

    def at(self, revision: str) -> str:
        """Return the URL of the same path at another revision."""
        return f"hf://{self.repository}@{quote(revision, safe='')}{f'/{self.path}' if self.path else ''}"


@dataclass
class Pin:
    """What is known about one file.

    Attributes:
        sha256: Its digest; empty if unknown.
        size: Its length in bytes; ``None`` if unknown.
        evidence: The source of the digest, as text for the user.
        foreign: What its bytes are, if they are not weights but have the digest of ``--expect``; empty otherwise.
        head: Its first bytes, if they were read and checked.
        suggested_name: The file name that its mirror sends; empty without one.
        is_published: Whether the Hub publishes the digest, so that the file was not downloaded.
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
    """One checkpoint whose pins may be incomplete.

    Attributes:
        pins: By path. A single file has one, under the name of the published file.
        knows_files: Whether ``pins`` lists every file. A single file always does.
        signed_by: As in `Checkpoint`.
        warnings: What the user should know although the pins were found.
        say: Shows a warning at once: what follows may take an hour, or fail.
    """

    name: str
    urls: list[str]
    auth: str | None = None
    is_directory: bool = False
    pins: dict[str, Pin] = field(default_factory=dict)
    knows_files: bool = True
    signed_by: str | None = None
    warnings: list[str] = field(default_factory=list)
    say: Callable[[str], None] = _log.warning

    def warn(self, text: str) -> None:
        """Show a warning now, and list it in the result."""
        self.warnings.append(text)
        self.say(f"{self.name}: {text}")

    def missing_pins(self) -> list[str]:
        """Return what `ensure` needs and the entry does not have."""
        branches = [url for url in self.urls if (hub := HubUrl.parse(url)) and not hub.is_pinned]
        missing = [f"the commit of {url}" for url in branches]
        if not self.knows_files:
            missing.append("the list of its files")
        return missing + [f"the sha256 of {path}" for path, pin in self.pins.items() if not pin.sha256]

    @property
    def accepts_server_name(self) -> bool:
        """Whether a name that its mirror sends may be used. A path on the Hub has a name."""
        return not self.is_directory and not any(map(HubUrl.parse, self.urls))

    def has_missing_sizes(self) -> bool:
        return any(pin.size is None for pin in self.pins.values())

    def checkpoint(self) -> Checkpoint:
        """Return the pinned checkpoint."""
        files = tuple(File(path, pin.sha256, pin.size) for path, pin in sorted(self.pins.items()))
        return Checkpoint(self.name, tuple(self.urls), files, self.is_directory, self.auth, self.signed_by)

    def placeholder(self) -> Checkpoint:
        """Return it as a checkpoint, with `UNKNOWN` for unknown digests."""
        files = tuple(File(path, pin.sha256 or UNKNOWN, pin.size) for path, pin in self.pins.items())
        return Checkpoint(self.name, tuple(self.urls), files or (File("-", UNKNOWN),), self.is_directory, self.auth)

    def check(self, source: str) -> None:
        """Check it by the rules of a manifest: the Hub and lists are untrusted input, like any other.

        Raises:
            ManifestError: It is invalid. Otherwise a path such as ``../x`` would be written to.
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
            refused.hint = "nothing was changed; leave out these files (on the Hub: --exclude), or ask the publisher"
            raise refused from None


def drafts(raw: Mapping[str, Any], source: str, say: Callable[[str], None] = _log.warning) -> list[Draft]:
    """Return every entry of a manifest, pinned or not. For ``say`` see `Draft`.

    Raises:
        ManifestError: Something other than missing pins is wrong.
    """
    entries = raw.get("checkpoints")
    filled = dict(raw)
    if isinstance(entries, Mapping):
        filled["checkpoints"] = {name: _filled(entry) for name, entry in entries.items()}
    try:
        manifest = Manifest.load(filled)
    except ManifestError as error:
        raise ManifestError(source, error.problems) from None
    return [_draft(checkpoint, raw["checkpoints"][checkpoint.name], say) for checkpoint in manifest]


def select(found: Sequence[Draft], names: Collection[str]) -> list[Draft]:
    """Return the drafts with these names, or all for no names; in the order of the manifest.

    Raises:
        UnknownCheckpointError: A name is not declared.
    """
    known, wanted = {draft.name: draft for draft in found}, set(names)
    for name in names:
        if name not in known:
            raise UnknownCheckpointError(name, known)
    return [draft for name, draft in known.items() if not wanted or name in wanted]


def _filled(entry: object) -> object:
    """Return an entry with placeholders for what `pin` can complete; errors in it stay, so that they are found."""
    if not isinstance(entry, Mapping):
        return entry
    filled = dict(entry)
    urls = entry.get("urls")
    if isinstance(urls, list):
        filled["urls"] = [hub.at(_NO_COMMIT) if (hub := _branch(url)) else url for url in urls]
    if _has_no_file_list(entry):
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


def _has_no_file_list(entry: Mapping[str, Any]) -> bool:
    """Whether it is a whole repository on the Hub without a list of its files."""
    urls = entry.get("urls")
    hubs = (
        [hub for url in urls if isinstance(url, str) and (hub := HubUrl.parse(url))] if isinstance(urls, list) else []
    )
    return bool(hubs) and not hubs[0].path and not {"files", "sha256", "file"} & set(entry)


def _draft(checkpoint: Checkpoint, entry: Mapping[str, Any], say: Callable[[str], None]) -> Draft:
    knows = not _has_no_file_list(entry)
    declared = entry.get("files", {}) if checkpoint.is_directory else {checkpoint.files[0].path: entry}
    pins = {
        file.path: Pin(file.sha256 if "sha256" in declared[file.path] else "", file.size)
        for file in checkpoint.files
        if knows
    }
    urls, directory = list(entry["urls"]), checkpoint.is_directory
    return Draft(checkpoint.name, urls, checkpoint.auth, directory, pins, knows, checkpoint.signed_by, say=say)
