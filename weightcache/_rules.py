"""The rules for what a manifest may say: names, paths, digests and URLs, each checked by one function.

Every ``*_problem`` returns what is wrong in a few words, or ``None``. They are also applied to what a receipt
says, because anybody who can write to the Volume can write a receipt.
"""

from __future__ import annotations

import os
import re

from .errors import StorageError, redacted

TYPE_CHECKING = False  # a type checker takes it for true; a hit need not import typing
if TYPE_CHECKING:
    from collections.abc import Iterator

MODAL_VOLUMES = "/__modal/volumes/"  # what a mount path resolves to in a container (modal/volume.py, 1.6)

_ALNUM = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# Matched with re.fullmatch, which compiles on first use, so that a hit compiles none that it does not need;
# fullmatch everywhere, since `$` would let a trailing newline pass.
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_REFERENCE = r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}"
_TOKEN_ITSELF = r"(hf|ghp|gho|github_pat)_.{16,}"  # noqa: S105 (what a token looks like)
_LOCAL = r"file:(?://(?:localhost)?)?(/(?!/).*)"
_HUB_BRANCH = r"hf://[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)?(?:@[^/@]+)?(?:/.+)?"
MOVES = "names no commit: want hf://REPO@COMMIT[/PATH] with its 40 hex digits, since a branch or tag moves"
_HUB = r"hf://([A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)?)@([0-9a-f]{40})(?:/(.+))?"


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


def url_problem(url: str, *, directory: bool) -> str | None:
    """Say why ``url`` cannot be a mirror of a file (or of a ``directory``), or ``None``."""
    if url.startswith("hf:"):
        return _hub_problem(url, directory)
    if "${" in url and (problem := _reference_problem(url)):
        return problem
    if not url.isprintable() or any(mark in url for mark in " \\#"):
        return "holds a space, control character, backslash or fragment; percent-encode it"
    if url.startswith("file:"):
        if not re.fullmatch(_LOCAL, url):
            return "want an absolute file:///path on this machine"
        return "holds an encoded NUL" if "%00" in url else None
    if not url.startswith(("http://", "https://")):
        return "want https, http, file or hf"
    authority = url.partition("://")[2].partition("/")[0].partition("?")[0]
    host, colon, port = authority.rpartition("@")[2].rpartition("]")[2].partition(":")
    named = host or authority.rpartition("@")[2].startswith("[")
    right = named and (not colon or (port.isdecimal() and len(port) <= 5))
    return None if right else "is not a URL with a host"


def _hub_problem(url: str, directory: bool) -> str | None:
    """The path is that of the file in its repository, with whatever characters it has: nothing in it is decoded."""
    if not (match := re.fullmatch(_HUB, url, re.DOTALL)):
        return MOVES if re.fullmatch(_HUB_BRANCH, url, re.DOTALL) else "want hf://REPO@COMMIT[/PATH]"
    if match[3] is None:
        return None if directory else "names a whole repository; add /PATH, or declare `files`"
    return path_problem(match[3])


def _reference_problem(url: str) -> str | None:
    before, _, query = url.partition("?")
    if "${" in before or not url.startswith(("http://", "https://")):
        return "${VARIABLE} may stand only in the query of an http or https URL: what is before it is shown in messages"
    if "${" in re.sub(_REFERENCE, "", query):
        return "want ${VARIABLE} with the name of an environment variable"
    return None


def variables(url: str) -> list[str]:
    """Return the environment variables that stand in a URL as ``${VARIABLE}``."""
    return re.findall(_REFERENCE, url) if "${" in url and not url.startswith("hf:") else []


def expanded(url: str) -> str:
    """Return a URL with its ``${VARIABLE}`` replaced by their values, as they are: what signs a URL is encoded already.

    Raises:
        KeyError: A variable is not set, or empty.
        ValueError: Its value cannot stand in a URL. The name is the argument; the value is never shown.
    """

    def value(match: re.Match[str]) -> str:
        text = os.environ.get(match[1], "").strip()  # a newline from `echo` is not a part of it
        if not text:
            raise KeyError(match[1])
        if not (text.isascii() and text.isprintable()) or " " in text or "#" in text:
            raise ValueError(match[1])
        return text

    return re.sub(_REFERENCE, value, url) if "${" in url else url


def local_path(url: str) -> str | None:
    """Return the path that a ``file:`` URL names, or ``None`` for any other URL."""
    if not (match := re.fullmatch(_LOCAL, url)):
        return None
    from urllib.parse import unquote

    return unquote(match[1])


def auth_problem(auth: str) -> str | None:
    """Say why ``auth`` does not name an environment variable, or ``None``. Never echoes it."""
    if re.fullmatch(_TOKEN_ITSELF, auth):
        return "looks like a token itself; put it into an environment variable and name that here"
    return None if re.fullmatch(_VARIABLE, auth) else "want the name of an environment variable, such as HF_TOKEN"


def hub_parts(url: str) -> tuple[str, str, str] | None:
    """Return repository, commit and path (perhaps empty) of an ``hf://`` URL; ``None`` for any other."""
    match = re.fullmatch(_HUB, url)
    return (match[1], match[2], match[3] or "") if match else None


def hub_page(url: str) -> str:
    """Return the address of the repository that an ``hf://`` URL names, for a person; empty for any other URL."""
    match = re.fullmatch(_HUB, url)
    return f"{redacted(hub_endpoint())}/{match[1]}" if match else ""


def hub_endpoint() -> str:
    """Return the Hub's address: ``HF_ENDPOINT``, or https://huggingface.co."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"


def resolved_url(url: str, inner: str) -> str:
    """Return the URL to request for a mirror ``url``: of the file ``inner`` below it, or of itself if that is empty.

    ``hf://`` becomes https. The Hub's address is ``HF_ENDPOINT``, by default https://huggingface.co, and a file is
    at ``/REPO/resolve/COMMIT/PATH`` (huggingface_hub's ``hf_hub_url``), whose PATH is percent-encoded here.
    """
    from urllib.parse import quote

    if match := re.fullmatch(_HUB, url):
        path = "/".join(quote(part) for part in (match[3], inner) if part)
        return f"{hub_endpoint()}/{match[1]}/resolve/{match[2]}/{path}"
    if not inner:
        return url
    base, question, query = url.partition("?")  # a signed base keeps its query
    return f"{base.rstrip('/')}/{quote(inner)}{question}{query}"


def name_from_url(url: str) -> str:
    """Return the last path segment of ``url``, percent-decoded but for an ``hf://`` one; empty if it has none."""
    if match := re.fullmatch(_HUB, url):
        return (match[3] or "").rpartition("/")[2]
    if match := re.fullmatch(_LOCAL, url):
        path = match[1]
    else:
        path = url.partition("://")[2].partition("?")[0].partition("/")[2]
    segment = path.rpartition("/")[2]
    if "%" in segment:
        from urllib.parse import unquote

        segment = unquote(segment)
    return segment


def has_ending(name: str) -> bool:
    """Whether a file's name has an ending such as ``.pt``; ``138296`` and ``v1.5`` have none."""
    return re.fullmatch(r".+\.[0-9]*[A-Za-z][A-Za-z0-9_-]*", name) is not None


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
