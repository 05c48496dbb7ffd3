"""What a manifest may say: names, paths and digests, each checked by one function.

Every ``*_problem`` returns what is wrong in a few words, or ``None``. Receipts are checked by the same functions,
because anybody who can write to the Volume can write a receipt.
"""

from __future__ import annotations

import os
import re

from weightcache.errors import StorageError

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeGuard

MAX_SIZE = (1 << 63) - 1  # bytes; the largest file that Linux can have
MODAL_VOLUMES = "/__modal/volumes/"  # what a mount path resolves to in a container (modal/volume.py, 1.6)

_ALNUM = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# Matched with re.fullmatch, which compiles on first use, so that a hit compiles none that it does not need;
# fullmatch everywhere, since `$` would let a trailing newline pass.
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_TOKEN_ITSELF = r"(hf|ghp|gho|github_pat)_.{16,}"  # noqa: S105 (what a token looks like)


def user_path(path: str) -> str:
    """Return ``path`` with ``~`` or ``~user`` at its beginning replaced by that home directory.

    Raises:
        StorageError: There is no such home, as in a container whose user id is random and has no entry in
            ``/etc/passwd``. `os.path.expanduser` leaves the path as it is then, which names a directory called ``~``.
    """
    if not path.startswith("~"):
        return path
    user, _, _ = path.partition("/")
    home = os.path.expanduser(user)
    if user == "~" and "HOME" in os.environ:
        why = f"HOME is {os.environ['HOME']!r:.200}, which is not a directory"
        good = os.environ["HOME"] != ""  # an empty one makes `/weights` of `~/weights`
    else:
        why, good = "HOME is not set, and this user has no home" if user == "~" else "there is no such user", True
    if good and home != user and os.path.isabs(home) and os.path.isdir(home):
        return os.path.expanduser(path)
    raise StorageError(
        f"cannot expand {user} in {path}: {why}",
        hint=f"give an absolute path{', or set HOME' if user == '~' else f'; a directory of that name is ./{user}'}",
        path=path,
    )


def real_path(path: object) -> str:
    """Return a path without links and ``~``; empty if it is no path, or one that cannot exist."""
    path = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(path, str):
        return ""
    try:
        return os.path.realpath(user_path(path))
    except ValueError:  # a NUL: whatever reads it says so
        return ""


def name_problem(name: str) -> str | None:
    """Say what is wrong with ``name`` as a checkpoint's name, or ``None``."""
    if 0 < len(name) <= 100 and name[0] in _ALNUM and not name.strip(_ALNUM + "._-"):
        return None
    return "a name is 1 to 100 of A-Z a-z 0-9 . _ - and begins with a letter or a digit"


def path_problem(path: str) -> str | None:
    """Say why ``path`` is not a relative POSIX path that stays inside its place, or ``None``."""
    if not path:
        return "is empty"
    if not path.isprintable():
        return "holds a control or unprintable character"
    if "\\" in path:
        return "holds a backslash; write paths with /"
    if path.startswith("/"):
        return "is absolute; write it relative to the checkpoint"
    segments = path.split("/")
    if any(segment in ("", ".", "..") for segment in segments):
        return "has an empty, `.` or `..` segment; write the plain path inside the checkpoint"
    # NAME_MAX and a share of PATH_MAX (linux/limits.h): longer ones fail at publishing, after the download.
    if any(len(segment.encode()) > 255 for segment in segments) or len(path.encode()) > 1024:
        return "is too long: at most 255 bytes between slashes and 1,024 in all"
    return None


def digest_problem(digest: str) -> str | None:
    """Say why ``digest`` is not a sha256 in lower-case hex, or ``None``."""
    return (
        None
        if len(digest) == 64 and not digest.strip("0123456789abcdef")
        else "want 64 lower-case hex digits (as printed by sha256sum)"
    )


def is_size(value: object) -> TypeGuard[int]:
    """Whether ``value`` is a number of bytes that a file can have; no boolean is one."""
    return type(value) is int and 0 <= value <= MAX_SIZE


def auth_problem(auth: str) -> str | None:
    """Say why ``auth`` does not name an environment variable, or ``None``. Never echoes it."""
    if re.fullmatch(_TOKEN_ITSELF, auth):
        return "looks like a token itself; put it into an environment variable and name that here"
    return None if re.fullmatch(_VARIABLE, auth) else "want the name of an environment variable, such as HF_TOKEN"


def signer_problem(signer: str) -> str | None:
    """Say why ``signer`` does not name a key, or ``None``."""
    scheme, _, digest = signer.partition(":")
    valid = scheme == "sha256" and digest_problem(digest) is None
    return None if valid else "want sha256: and 64 lower-case hex digits, which name a public key"


def clashes(names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs that a file system which folds case or Unicode forms would take for one name."""
    seen: dict[str, str] = {}
    for name in names:
        folded = name
        if not name.isascii():
            import unicodedata

            folded = unicodedata.normalize("NFC", name)
        first = seen.setdefault(folded.casefold(), name)
        if first is not name:
            yield first, name
