"""Changing entries of a manifest and nothing else: comments, order and layout stay."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from weightcache._pinning.unpinned_entries import drafts
from weightcache.errors import ManifestError, StorageError
from weightcache.manifest import Manifest
from weightcache.manifest.parse import parse_toml, read_manifest
from weightcache.manifest.validate import user_path

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from weightcache.manifest import Checkpoint, File

EMPTY_MANIFEST = "version = 1\n"


class ManifestFile:
    """The text of a manifest, for changing it.

    Args:
        path: Path of the manifest, which need not exist.
        writes: Whether it will be changed; if it cannot be, that is an error now, before anything is downloaded.

    Attributes:
        path: The file with links resolved, so that a link to it is not replaced.
        raw: Its content as plain data; empty if the file does not exist.

    Raises:
        ManifestError: It cannot be read or written, or is not TOML.
    """

    def __init__(self, path: str, *, writes: bool = False) -> None:
        opened = user_path(path)  # not by its real path, because a pipe has none
        self.path = os.path.realpath(opened)
        self._shown = path
        self._before: bytes | None = None
        if writes and (problem := self._unwritable()):
            raise ManifestError(path, [problem])
        try:
            self._before = read_manifest(opened)
        except FileNotFoundError:
            pass
        except ManifestError as error:  # it is too long
            raise ManifestError(path, error.problems) from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise ManifestError(path, [f"cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
        self.raw: Mapping[str, Any] = parse_toml(self._before or b"", path)

    @property
    def exists(self) -> bool:
        return self._before is not None

    @property
    def text(self) -> str:
        return (self._before or b"").decode()

    def add(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Append entries.

        Raises:
            ManifestError: Its layout does not allow it.
            StorageError: It cannot be written, or another process changed it.
        """
        text = self._with(checkpoints)
        self._check(text, checkpoints)
        self._replace(text.encode())

    def check_add(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Raise the errors of `add` about names and layout before anything is downloaded."""
        self._check(self._with(checkpoints), checkpoints)

    def complete(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Write pins into the entries, also in place of others. The errors are those of `add` and `require_tomlkit`."""
        require_tomlkit()
        import tomlkit

        document: Any = tomlkit.parse(self.text)
        for checkpoint in checkpoints:
            _complete(document["checkpoints"][checkpoint.name], checkpoint)
        text = tomlkit.dumps(document)
        if (end := _line_end(self.text)) != "\n":
            text = text.replace(end, "\n").replace("\n", end)
        self._check(text, checkpoints)
        if text != self.text:  # they are equal if only a size was missing and no mirror has it
            self._replace(text.encode())

    def _with(self, checkpoints: Sequence[Checkpoint]) -> str:
        before = self.text if self.text.strip() else EMPTY_MANIFEST
        end = _line_end(before)
        added = "".join(f"\n{checkpoint}\n" for checkpoint in checkpoints)
        return before + ("" if before.endswith("\n") else end) + added.replace("\n", end)

    def _check(self, text: str, changed: Sequence[Checkpoint]) -> None:
        """Refuse a text that differs from the old one in anything else than the changed entries."""
        after = parse_toml(text.encode(), self._shown, "cannot be changed so that it stays TOML")
        drafts(after, self._shown)  # together with the old entries: a name may differ from another only in case
        names = dict.fromkeys(checkpoint.name for checkpoint in changed)  # ordered, and with fast lookup
        kept = {name: entry for name, entry in after.get("checkpoints", {}).items() if name not in names}
        entries = {name: after.get("checkpoints", {}).get(name) for name in names}
        others = {name: entry for name, entry in self.raw.get("checkpoints", {}).items() if name not in names}
        rest = {key: value for key, value in after.items() if key != "checkpoints"}
        was = {key: value for key, value in self.raw.items() if key != "checkpoints"}
        right = tuple(Manifest.load({"checkpoints": entries})) == tuple(changed) if all(entries.values()) else False
        if kept != others or (self.exists and self.text.strip() and rest != was) or not right:
            raise ManifestError(
                self._shown,
                ["its layout does not allow the change; write each checkpoint as a table [checkpoints.NAME]"],
            )

    def _unwritable(self) -> str | None:
        folder = os.path.dirname(self.path)
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            # A rename to /dev/null, for example, would replace the device by a file.
            return "is not a regular file, and cannot be changed; --print shows the entries instead"
        if not os.path.isdir(folder):
            return f"cannot be created: there is no directory {folder}"
        return None if os.access(folder, os.W_OK) else f"cannot be changed: {folder} is not writable"

    def _replace(self, data: bytes) -> None:
        """Replace the file atomically: a reader sees the old text or the new one."""
        temporary = ""
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=".weights-", dir=os.path.dirname(self.path))
            with open(descriptor, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(temporary, _mode(self.path))
            if not self._is_unchanged():
                raise StorageError(
                    f"{self._shown} was changed by another process; this command did not change it",
                    hint="run the command again",
                    path=self.path,
                )
            os.replace(temporary, self.path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            if isinstance(error, StorageError):
                raise
            raise StorageError.of(error, "write", self.path) from None

    def _is_unchanged(self) -> bool:
        try:
            return read_manifest(self.path) == self._before
        except FileNotFoundError:
            return self._before is None
        except ManifestError:  # it is too long now
            return False


def require_tomlkit() -> None:
    """Check that `ManifestFile.complete` can work, before anything is downloaded.

    Raises:
        ValueError: tomlkit is not installed.
    """
    try:
        import tomlkit  # noqa: F401
    except ImportError:
        raise ValueError("changing an entry needs tomlkit: pip install 'weightcache[tool]'") from None


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode & 0o7777
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def _line_end(text: str) -> str:
    """Return the line end for new lines: that of Windows if all existing lines have it."""
    return "\r\n" if "\n" in text and text.count("\r\n") == text.count("\n") else "\n"


def _complete(table: Any, checkpoint: Checkpoint) -> None:
    import tomlkit

    for index, url in enumerate(checkpoint.urls):
        if table["urls"][index] != url:
            table["urls"][index] = url
    if checkpoint.signed_by != table.get("signed_by"):
        _set(table, {"signed_by": checkpoint.signed_by})
    if not checkpoint.is_directory:
        _pin(table, checkpoint.files[0])
        return
    if "files" not in table:
        _set(table, {"files": _files(table, checkpoint)})
        return
    files, changed = table["files"], {}  # once: tomlkit merges the parts of a table at each access
    for file in checkpoint.files:
        given = files.get(file.path)
        if given is not None and not isinstance(given, tomlkit.items.InlineTable):
            _pin(given, file)
        elif given is None or (file.sha256, file.size) != (given.get("sha256"), given.get("size")):
            changed[file.path] = _inline(file, given)
    _set(files, changed)
    _remove(files, {*files} - {file.path for file in checkpoint.files})


def _files(table: Any, checkpoint: Checkpoint) -> Any:
    import tomlkit

    # Parsed, not built: the time that tomlkit needs to append grows with the table (10,000 files: minutes).
    files: Any = tomlkit.parse(f"{checkpoint}\n")["checkpoints"][checkpoint.name]["files"]
    if not isinstance(table, tomlkit.items.InlineTable):
        return files
    inline = tomlkit.inline_table()
    inline.update(files.unwrap())
    return inline


def _inline(file: File, instead_of: Any) -> Any:
    """Return a file's pins as an inline table, with the comment and whitespace of the one that it replaces, if any."""
    import tomlkit

    size = "" if file.size is None else f", size = {file.size}"
    made = tomlkit.parse(f'x = {{ sha256 = "{file.sha256}"{size} }}\n')["x"]
    if instead_of is not None:
        made.trivia.comment_ws, made.trivia.comment = instead_of.trivia.comment_ws, instead_of.trivia.comment
        made.trivia.trail = instead_of.trivia.trail
    return made


def _pin(table: Any, file: File) -> None:
    pins = {"sha256": file.sha256} | ({} if file.size is None else {"size": file.size})
    if file.size is None and "size" in table:
        del table["size"]
    _set(table, {key: value for key, value in pins.items() if table.get(key) != value})


def _remove(files: Any, paths: Collection[str]) -> None:
    """Remove files. Comments at the end of the table of one stay: for tomlkit those about the next header are there."""
    import tomlkit

    body = [] if isinstance(files, tomlkit.container.OutOfOrderTableProxy) else files.value.body
    for index, (key, item) in reversed(list(enumerate(body))):
        if key is None or key.key not in paths or not isinstance(item, tomlkit.items.Table):
            continue
        after = _split_end(item.value.body)
        if any(isinstance(each, tomlkit.items.Comment) for _, each in after):
            tables = [each for _, each in body[:index] if isinstance(each, tomlkit.items.Table)]
            (tables[-1].value.body if tables else body).extend(after)
    for path in paths:
        del files[path]


def _split_end(body: list[Any]) -> list[Any]:
    """Remove what follows the last key from the body of a table, and return it."""
    end = max((index + 1 for index, (name, _) in enumerate(body) if name is not None), default=len(body))
    after = body[end:]
    del body[end:]
    return after


def _set(table: Any, values: Mapping[str, Any]) -> None:
    """Set keys after the last one of a table.

    Comments between the last key and the next header belong to this table for tomlkit. It would write new keys below a
    comment that is about the next checkpoint.
    """
    import tomlkit

    after: list[Any] = []
    if isinstance(table, tomlkit.items.Table):  # not an inline table, or one of dotted keys
        body = table.value.body
        after = _split_end(body)
    for key, value in values.items():
        table[key] = value
    if after:
        body += after
