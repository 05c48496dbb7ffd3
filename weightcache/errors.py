"""Every environmental failure (network, disk, Modal) as one tree of errors.

::

    WeightCacheError                                  .hint
    ├── ManifestError          (ValueError)           .source .problems
    ├── UnknownCheckpointError (LookupError)          .name .known
    ├── NotCachedError         (FileNotFoundError)    .checkpoints
    ├── DownloadError          (OSError)              .checkpoint .file .attempts
    │   └── IntegrityError                            .expected .actual .url
    ├── LockTimeoutError       (TimeoutError)         .lock_path .waited .holder
    ├── StorageError           (OSError)              .path .errno
    ├── LoadError              (RuntimeError)         .source .problems
    └── VolumeError                                   .operation

The second base is the built-in class that a caller would guess. Every message says what happened, where, what
was received and what was expected; ``hint`` says in one sentence what to do next. All survive pickling with their
attributes, because Modal sends exceptions from one container to another. A wrong argument raises a plain ``TypeError``
or ``ValueError``, which is not in this tree.
"""

from __future__ import annotations

from weightcache._frozen import Frozen
from weightcache._message_text import printable, printable_line, problem_lines

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = [
    "Attempt",
    "DownloadError",
    "IntegrityError",
    "LoadError",
    "LockTimeoutError",
    "ManifestError",
    "NotCachedError",
    "StorageError",
    "UnknownCheckpointError",
    "VolumeError",
    "WeightCacheError",
]


def redacted(url: str) -> str:
    """Return ``url`` without user name, password, query and fragment: signed URLs are secrets.

    Without unprintable characters, too: a server chooses where it redirects. An ``hf://`` URL has no secrets: ``@``
    stands before its commit, and ``?`` and ``#`` are parts of a file's name.
    """
    url = "".join(filter(str.isprintable, url))
    if url.startswith("hf://"):
        return url
    scheme, separator, rest = url.partition("#")[0].partition("?")[0].partition("://")
    if not separator:
        return scheme
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _rebuild(cls: type[WeightCacheError], message: str, state: dict[str, Any]) -> WeightCacheError:
    error = cls.__new__(cls, message)
    BaseException.__init__(error, message)
    for name, value in state.items():
        setattr(error, name, value)
    return error


class WeightCacheError(Exception):
    """Base of all errors that this library raises for an environmental failure."""

    def __init__(self, message: str, *, hint: str = "", **attributes: object) -> None:
        super().__init__(printable(message))
        self.hint = hint
        for name, value in attributes.items():
            setattr(self, name, value)

    @property
    def hint(self) -> str:
        """One sentence that says what to do next; may be empty."""
        return str(self.__dict__["hint"])

    @hint.setter
    def hint(self, text: str) -> None:
        self.__dict__["hint"] = printable(text)  # in the state of a pickle by this name, as 0.1 wrote it

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message}\n  hint: {self.hint}" if self.hint else message

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call __init__ with the message alone and lose (or demand) every keyword.
        state = dict(self.__dict__)
        if isinstance(self, OSError) and self.errno is not None:
            state["errno"] = self.errno  # a C-level slot, not in __dict__
        return _rebuild, (type(self), self.args[0], state)


class ManifestError(WeightCacheError, ValueError):
    """The manifest cannot be used.

    Attributes:
        source: The file it came from, or ``"manifest"`` for a mapping.
        problems: All problems; each begins with its key, as in ``checkpoints.sam2.sha256: …``. The message has 100.
    """

    source: str
    problems: tuple[str, ...]

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        found = tuple(problems)
        count = f"{len(found)} problem{'s' * (len(found) != 1)}"
        super().__init__(
            f"{printable_line(source)}: {count}{problem_lines(found)}",
            hint="mend the lines named above; docs/reference/manifest.md lists every key",
            source=source,
            problems=found,
        )


class UnknownCheckpointError(WeightCacheError, LookupError):
    """The manifest does not declare a requested name.

    Attributes:
        name: The requested name.
        known: The names that are declared.
    """

    name: str
    known: tuple[str, ...]

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = tuple(known)
        from difflib import get_close_matches  # not at the top: a hit does without

        shown = names if len(names) <= 10 else get_close_matches(name, names, 10) or names[:10]
        more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
        message = f"no checkpoint is called {name!r:.120}; declared are: {', '.join(shown)}{more}"
        hint = "use one of the declared names, or add the checkpoint to the manifest"
        super().__init__(message, hint=hint, name=name, known=names)


class NotCachedError(WeightCacheError, FileNotFoundError):
    """Something is not in the root, and fetching it is forbidden (``offline``) or impossible (read-only root).

    Attributes:
        checkpoints: The names that are missing.
    """

    checkpoints: tuple[str, ...]


class Attempt(Frozen):
    """The outcome of one URL.

    Attributes:
        url: The URL, without credentials and query.
        reason: Why it delivered no verified file.
        tries: Number of requests.
    """

    __slots__ = ("reason", "tries", "url")

    url: str
    reason: str
    tries: int

    def __init__(self, url: str, reason: str, tries: int) -> None:
        self._set(url=url, reason=reason, tries=tries)


class DownloadError(WeightCacheError, OSError):
    """No URL of a file delivered its bytes.

    Attributes:
        checkpoint: Name of the checkpoint.
        file: Path of the file within it.
        attempts: One cause for each URL, in the declared order. The message names the first.
    """

    checkpoint: str
    file: str
    attempts: tuple[Attempt, ...]


class IntegrityError(DownloadError):
    """A mirror delivered a complete file that is not the declared one.

    Attributes:
        expected: The declared sha256 (or size, as ``"N bytes"``).
        actual: What was received, in the same form.
        url: Where it came from, without credentials and query.
    """

    expected: str
    actual: str
    url: str


class LockTimeoutError(WeightCacheError, TimeoutError):
    """Another process or thread of this container holds the lock and made no progress for ``wait`` seconds.

    Attributes:
        lock_path: The lock file, outside the root.
        waited: Total seconds waited.
        holder: The process that holds the lock, and its progress, in words.
    """

    lock_path: str
    waited: float
    holder: str


class StorageError(WeightCacheError, OSError):
    """The root cannot be used (disk full, no permission, not a directory), or what is to be published cannot be read.

    Attributes:
        path: What could not be used.
        errno: The number of the operating system's error, or ``None``.
    """

    path: str

    @classmethod
    def of(cls, error: OSError, doing: str, path: str) -> StorageError:
        """Wrap the operating system's ``error``, raised while ``doing`` something to ``path``."""
        import errno

        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = "the disk is full" if full else (error.strerror or str(error))
        hints = {
            errno.EROFS: "the root is mounted read-only; fill it from a container that may write",
            errno.EACCES: "give this user write permission to the root",
            errno.ENOTDIR: "root must be a directory",
            errno.EMFILE: "raise the limit of open files (ulimit -n), or close files that the program does not need",
            errno.ENFILE: "the machine has no room for more open files: end programs that have many",
            errno.ESTALE: "the Volume was reloaded, or the file was replaced, while it was in use: call it again",
        }
        if doing == "read":
            hints |= {errno.EACCES: "let this user read it", errno.ENOENT: "give the path of something that is there"}
        if full:  # the import needs a descriptor, which EMFILE says are used up
            from weightcache._environment import command

            hints[error.errno or 0] = (
                f"free space there ({command('prune')}), or give the container more disk: "
                "on Modal, writes to a Volume are first kept on the container's own disk (ephemeral_disk=)"
            )
        hints[errno.EPERM] = hints[errno.EACCES]
        hint = hints.get(error.errno or 0, "see the operating system's message; nothing wrong was published")
        wrapped = cls(f"cannot {doing} {printable_line(path)}: {what}", hint=hint, path=path)
        wrapped.errno = error.errno
        return wrapped


class _LazyImports:
    """Reports a lazy import that fails for want of the disk or of descriptors as a `StorageError`.

    A hit does not import the engine; a miss does. With no free descriptor, or on a disk that cannot be read, that
    import raises a plain ``OSError``, which is outside the tree of errors.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, WeightCacheError):
            raise StorageError.of(error, "read", error.filename or "the modules of weightcache") from error


lazy_imports = _LazyImports()


class LoadError(WeightCacheError, RuntimeError):
    """A file cannot be loaded as weights, or the weights do not fit the module (`weightcache.torch`).

    Attributes:
        source: The file, the directory, or the class of the module.
        problems: All problems; of weights that do not fit, one for each name. The message has 100.
    """

    source: str
    problems: tuple[str, ...]

    def __init__(self, source: str, problems: Iterable[str], *, hint: str) -> None:
        found = tuple(problems)
        what = f" {printable_line(found[0])}" if len(found) == 1 else f" {len(found)} problems{problem_lines(found)}"
        super().__init__(f"{printable_line(source)}:{what}", hint=hint, source=source, problems=found)


class VolumeError(WeightCacheError):
    """An operation on the Volume failed.

    Attributes:
        operation: ``"commit"``, ``"reload"``, ``"mount"`` (another Volume, or none, is mounted at the root), or
            ``"open"`` (from a terminal: it cannot be opened).
    """

    operation: str
