"""Reading a signature of OpenSSF Model Signing: which files a key signed, and their digests.

The format is that of model-signing 1.0 and later: a Sigstore bundle holds a DSSE envelope, whose payload is an in-toto
statement with the name and sha256 of each file. Only signatures with a key are verified; docs/decisions/0035 says why.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

from weightcache._size_text import size_text
from weightcache._strict_json import InvalidJsonError, parse_json_object
from weightcache.errors import IntegrityError, ManifestError, StorageError
from weightcache.manifest import Manifest
from weightcache.manifest.validate import digest_problem

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BYTES = 16 << 20  # of a bundle: room for the names and digests of 50,000 files
ONE_FILE = "."  # what model-signing calls the file of a model that is one file

_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_KINDS: dict[type, str] = {dict: "an object", list: "an array", str: "a string"}
_SIGN_AGAIN = "ask the publisher to sign with `model_signing sign key` of model-signing 1.0 or later"


class SignedFiles(NamedTuple):
    """What a key signed.

    Attributes:
        digests: The sha256 of each file, by its path in the model; `ONE_FILE` for a model that is one file.
        signer: The key, as in `Checkpoint`.
        source: Where the signature was read, for messages.
    """

    digests: Mapping[str, str]
    signer: str
    source: str


class PublicKey:
    """The key of a publisher: ECDSA on P-256, P-384 or P-521, as model-signing 1.0 defines.

    Args:
        path: A file that holds the key in PEM.

    Attributes:
        path: As given.
        signer: ``sha256:`` and the digest of the key in PEM, which is also that of the file as ``openssl`` writes it.

    Raises:
        ValueError: It is not such a key, or cryptography is not installed.
        StorageError: It cannot be read.
    """

    def __init__(self, path: str) -> None:
        try:
            from cryptography.exceptions import UnsupportedAlgorithm
            from cryptography.hazmat.primitives import hashes
            from cryptography.hazmat.primitives.asymmetric import ec
            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
        except ImportError:
            raise ValueError("verifying a signature needs cryptography: pip install 'weightcache[sign]'") from None
        data = read_local(path, 1 << 16)
        try:
            key = load_pem_public_key(data)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError(f"{path} is not a public key in PEM (-----BEGIN PUBLIC KEY-----)") from None
        algorithms: dict[str, hashes.HashAlgorithm] = {
            "secp256r1": hashes.SHA256(),
            "secp384r1": hashes.SHA384(),
            "secp521r1": hashes.SHA512(),
        }
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in algorithms:
            kind = f"on the curve {key.curve.name}" if isinstance(key, ec.EllipticCurvePublicKey) else "of another kind"
            raise ValueError(
                f"{path} holds a key {kind}; want ECDSA on P-256, P-384 or P-521, as Model Signing defines"
            )
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.path, self.signer = path, f"sha256:{hashlib.sha256(pem).hexdigest()}"
        self._key, self._algorithm = key, ec.ECDSA(algorithms[key.curve.name])

    def has_signed(self, signature: bytes, message: bytes) -> bool:
        """Whether this key made a signature of a message."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, message, self._algorithm)
        except InvalidSignature:
            return False
        return True


def read_local(path: str, limit: int) -> bytes:
    """Return a file of at most ``limit`` bytes.

    Raises:
        StorageError: It cannot be read.
        ValueError: It is longer.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(limit + 1)
    except OSError as error:
        raise StorageError.of(error, "read", path) from None
    if len(data) > limit:
        raise ValueError(f"{path} has more than {size_text(limit)}")
    return data


def signed_files(data: bytes, key: PublicKey, *, name: str, source: str) -> SignedFiles:
    """Return what a bundle lists, after its signature is verified.

    Args:
        data: The bundle.
        key: The only key that may have signed it.
        name: Of the checkpoint, for messages.
        source: Where the bundle was read, for messages.

    Raises:
        ManifestError: It is not a bundle of Model Signing with a key, or its statement is invalid.
        IntegrityError: Another key signed it, or it was changed since.
    """
    try:
        bundle = parse_json_object(data)
        _check_form(bundle)
        if hint := _hint(bundle):
            check_signer(f"sha256:{hint}", key, name, source)
        payload = _base64(bundle, "dsseEnvelope.payload")
        message = b"DSSEv1 %d %s %d %s" % (len(_PAYLOAD), _PAYLOAD.encode(), len(payload), payload)
        if not key.has_signed(_base64(bundle["dsseEnvelope"]["signatures"][0], "sig"), message):
            check_signer("a signature that does not match the content", key, name, source)
        return SignedFiles(_digests(parse_json_object(payload)), key.signer, source)
    except ManifestError as error:  # paths that a manifest may not contain
        raise _refusal(source, error.problems, "ask the publisher to rename these files and to sign again") from None
    except InvalidJsonError as error:
        raise _refusal(
            source, [str(error)], "give the file that `model_signing sign key` wrote, such as model.sig"
        ) from None
    except _UnsupportedError as error:
        raise _refusal(source, [str(error)], error.hint) from None


class _UnsupportedError(Exception):
    """What is wrong with a bundle, and what to do."""

    def __init__(self, problem: str, hint: str = _SIGN_AGAIN) -> None:
        super().__init__(problem)
        self.hint = hint


def _refusal(source: str, problems: tuple[str, ...] | list[str], hint: str) -> ManifestError:
    error = ManifestError(source, [f"the signature {each}" if len(problems) == 1 else each for each in problems])
    error.hint = f"nothing was changed; {hint}"
    return error


def check_signer(found: str, key: PublicKey, name: str, source: str) -> None:
    """Raise the error of a signature that another key made, unless it names this key."""
    if found == key.signer:
        return
    raise IntegrityError(
        f"checkpoint {name}: {source} is not signed by {key.path}\n  expected {key.signer}\n  actual   {found:.200}",
        hint="nothing was changed; ask the publisher which key signs, by another way than beside the weights",
        checkpoint=name,
        file="",
        attempts=(),
        expected=key.signer,
        actual=found,
        url=source,
    )


def _at(document: object, path: str, kind: type) -> Any:
    """Return the value at a path of keys.

    Raises:
        _UnsupportedError: There is no such value, or it is not of the kind.
    """
    value: object = document
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, kind):
        got = "nothing" if value is None else _KINDS.get(type(value), f"{value!r:.40}")
        raise _UnsupportedError(f"has no {path}: want {_KINDS[kind]}, got {got}")
    return value


def _require(document: object, path: str, wanted: str) -> None:
    if (found := _at(document, path, str)) != wanted:
        raise _UnsupportedError(f"has the {path} {found!r:.120}, want {wanted!r}")


def _check_form(bundle: dict[str, Any]) -> None:
    """Refuse a bundle that is not one of a signature with a key."""
    _require(bundle, "mediaType", _BUNDLE)
    material = _at(bundle, "verificationMaterial", dict)
    if found := sorted({"certificate", "x509CertificateChain"} & material.keys()):
        raise _UnsupportedError(
            f"has a {found[0]}: it was made with a certificate, or without a key; want one that was made with a key",
            "verify a download with `model_signing verify`, and declare it with `weightcache add --from-dir`",
        )
    _at(material, "publicKey", dict)
    _require(bundle, "dsseEnvelope.payloadType", _PAYLOAD)
    signatures = _at(bundle, "dsseEnvelope.signatures", list)
    if len(signatures) != 1:
        raise _UnsupportedError(f"has {len(signatures)} signatures, want one")


def _hint(bundle: dict[str, Any]) -> str:
    """Return the digest of the key that the bundle names; empty if it names none, as older ones do."""
    hint = bundle["verificationMaterial"]["publicKey"].get("hint") or ""
    if not isinstance(hint, str) or (hint and digest_problem(hint)):
        raise _UnsupportedError(f"has the key hint {hint!r:.120}, want the sha256 of a key")
    return hint


def _base64(document: object, path: str) -> bytes:
    try:
        return base64.b64decode(_at(document, path, str), validate=True)
    except ValueError:
        raise _UnsupportedError(f"has a {path.rpartition('.')[2]} that is not base64") from None


def _digests(statement: dict[str, Any]) -> dict[str, str]:
    """Return the digests that a statement lists, by path.

    Raises:
        _UnsupportedError: It is of another version, not of whole files with sha256, or contradicts itself.
        ManifestError: Its paths are not those of a checkpoint.
    """
    _require(statement, "_type", _STATEMENT)
    _require(statement, "predicateType", _PREDICATE)
    if _at(statement, "predicate.serialization.method", str) == "shards":
        raise _UnsupportedError("lists digests of parts of files (shards), and an entry has those of whole files")
    _require(statement, "predicate.serialization.method", "files")
    digests: dict[str, str] = {}
    for resource in _at(statement, "predicate.resources", list):
        _require(resource, "algorithm", "sha256")
        path = _at(resource, "name", str)
        if path in digests:
            raise _UnsupportedError(f"lists {path!r:.120} twice")
        digests[path] = _at(resource, "digest", str)
    _check_paths(digests)
    subjects = _at(statement, "subject", list)
    if len(subjects) != 1:
        raise _UnsupportedError(f"has {len(subjects)} subjects, want one")
    whole = hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    if _at(subjects[0], "digest.sha256", str) != whole:
        raise _UnsupportedError(
            f"contradicts itself: the digest of all files is {whole}, and its subject has another one"
        )
    return digests


def _check_paths(digests: Mapping[str, str]) -> None:
    """Check paths and digests by the rules of a manifest."""
    if not digests:
        raise _UnsupportedError("lists no file")
    if list(digests) == [ONE_FILE]:
        entry: dict[str, Any] = {"sha256": digests[ONE_FILE]}
    else:
        entry = {"files": {path: {"sha256": digest} for path, digest in digests.items()}}
    try:
        Manifest.load({"checkpoints": {"signed": {"urls": [], **entry}}})
    except ManifestError as error:
        listed = [f"lists {each.removeprefix('checkpoints.signed.').removeprefix('files.')}" for each in error.problems]
        raise ManifestError("", listed) from None
