"""What a manifest declares: checkpoints and their files. Plain data, read on every hit."""

from __future__ import annotations

import hashlib

from weightcache._frozen import Frozen

from .urls import variables
from .validate import name_problem


class File(Frozen):
    """One file of a checkpoint.

    Attributes:
        path: Relative POSIX path inside the checkpoint's place.
        sha256: Digest of its bytes, 64 lower-case hex digits.
        size: Its length in bytes, or ``None`` where the manifest does not say.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    __slots__ = ("path", "sha256", "size")

    path: str
    sha256: str
    size: int | None

    def __init__(self, path: str, sha256: str, size: int | None = None) -> None:
        self._set(path=path, sha256=sha256, size=size)


class Checkpoint(Frozen):
    """One named thing to have: a file, or a directory of files. Made by `Manifest.load`.

    Attributes:
        name: Its name in the manifest.
        urls: Mirrors in order of preference: of the file, or of the directory that holds the files.
        files: The files, sorted by path. A single-file checkpoint has one.
        is_directory: Whether it was declared with ``files``.
        auth: Name of the environment variable that holds its bearer token, or ``None``.
        digest: What the bytes are, 64 hex digits: the file's sha256, or the sha256 of the directory's
            ``sha256sum`` listing (lines ``<hex>  <path>``, sorted by the path's bytes).
        signed_by: The key whose signature gave the digests, as ``sha256:`` and the digest of its PEM text, or ``None``.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    # In the order of pickles, which have no names: a new one is added at the end.
    __slots__ = ("auth", "digest", "files", "is_directory", "name", "urls", "signed_by")  # noqa: RUF023 (see above)

    name: str
    urls: tuple[str, ...]
    files: tuple[File, ...]
    is_directory: bool
    auth: str | None
    digest: str
    signed_by: str | None

    def __init__(
        self,
        name: str,
        urls: tuple[str, ...],
        files: tuple[File, ...],
        is_directory: bool = False,
        auth: str | None = None,
        signed_by: str | None = None,
    ) -> None:
        digest = files[0].sha256
        if is_directory:
            ordered = sorted(files, key=lambda file: file.path.encode())
            listing = "".join(f"{file.sha256}  {file.path}\n" for file in ordered)
            digest = hashlib.sha256(listing.encode()).hexdigest()
        self._set(name=name, urls=urls, files=files, is_directory=is_directory, auth=auth, digest=digest)
        self._set(signed_by=signed_by)

    def __getstate__(self) -> tuple[object, ...]:
        state = super().__getstate__()
        return state if self.signed_by else state[:-1]  # as 0.1 wrote it, which a container may still run

    def __setstate__(self, state: tuple[object, ...]) -> None:
        super().__setstate__(state if len(state) == len(self.__slots__) else (*state, None))

    def __str__(self) -> str:
        """Its entry in a ``weights.toml``, as `Manifest.load` reads it, without a newline at the end."""
        key = f"checkpoints.{_quoted(self.name) if '.' in self.name else self.name}"
        lines = [f"[{key}]", f"urls = [{', '.join(map(_quoted, self.urls))}]"]
        if self.auth:
            lines.append(f"auth = {_quoted(self.auth)}")
        if self.signed_by:
            lines.append(f"signed_by = {_quoted(self.signed_by)}")
        if self.is_directory:
            lines.append(f"[{key}.files]")
        for file in self.files:
            pins = [f'sha256 = "{file.sha256}"', *([] if file.size is None else [f"size = {file.size}"])]
            if self.is_directory:
                lines.append(f"{_quoted(file.path)} = {{ {', '.join(pins)} }}")
            else:
                lines += [f"file = {_quoted(file.path)}", *pins]
        return "\n".join(lines)

    @property
    def version(self) -> str:
        """The first 16 digits of `digest`: the directory of this version in the root."""
        return self.digest[:16]

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables that its ``auth`` and its URLs name; a download needs them."""
        named = [variable for url in self.urls for variable in variables(url)]
        return tuple(dict.fromkeys([self.auth, *named] if self.auth else named))

    @property
    def size(self) -> int | None:
        """Declared bytes in all, or ``None`` if any file's size is not declared."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size for size in sizes if size is not None)


class Tag(Frozen):
    """A name for the version of a checkpoint that `publish` tagged last. `ensure` takes it in place of a manifest.

    Attributes:
        name: Name of the checkpoint.
        tag: Name of the tag.
        poll: Seconds for which `ensure` uses the result of one reload of the Volume. It does not decide which tag is
            meant: two values that differ only in it are equal.

    Raises:
        ValueError: ``name`` or ``tag`` is not a name, or ``poll`` is not a number of seconds, 0 or more.
        TypeError: ``name`` or ``tag`` is not a string.
    """

    __module__ = "weightcache"  # pickles name it: it must not change with the file

    __slots__ = ("name", "poll", "tag")

    name: str
    tag: str
    poll: float

    def __init__(self, name: str, tag: str = "newest", *, poll: float = 10.0) -> None:
        for what, text in (("name", name), ("tag", tag)):
            if not isinstance(text, str):
                raise TypeError(f"{what} must be a string, not {type(text).__name__}")
            if problem := name_problem(text):
                raise ValueError(f"{what} is {text!r:.120}, and {problem}")
        if not isinstance(poll, (int, float)) or isinstance(poll, bool) or not 0 <= poll < float("inf"):
            raise ValueError(f"poll must be a number of seconds, 0 or more, not {poll!r}")
        self._set(name=name, tag=tag, poll=poll)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self.name, self.tag) == (other.name, other.tag)

    def __hash__(self) -> int:
        return hash((self.name, self.tag))

    def __str__(self) -> str:
        return f"tag {self.tag} of {self.name}"


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON lets DEL stand, TOML does not
