"""Signatures of Model Signing: those of the real tool are taken, and everything else is an error of this library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from origin import Origin
from signing import KEY, OTHER, bundle, envelope, pem, signer, statement, write_key
from support import sha256
from weightcache._pinning.model_signature import MAX_BYTES, PublicKey, SignedFiles, read_local, signed_files
from weightcache._pinning.signed_pins import read_signature
from weightcache._pinning.unpinned_entries import Draft
from weightcache.errors import DownloadError, IntegrityError, ManifestError, StorageError
from weightcache.manifest import Manifest

REAL = Path(__file__).resolve().parents[1] / "data" / "model_signing"
FILES = {"config.json": b"{}", "unet/model.safetensors": b"weights"}
LISTED = [("a", "1" * 64), ("b/c", "2" * 64)]
A, B = "a" * 64, "b" * 64


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> PublicKey:
    return PublicKey(write_key(str(tmp_path_factory.mktemp("keys") / "release.pem")))


def read(data: bytes | dict[str, Any], key: PublicKey) -> SignedFiles:
    written = data if isinstance(data, bytes) else json.dumps(data).encode()
    return signed_files(written, key, name="m", source="model.sig")


def signed(said: Any, **options: Any) -> dict[str, Any]:
    return envelope(said if isinstance(said, bytes) else json.dumps(said).encode(), **options)


@pytest.mark.parametrize("curve", ["p256", "p384", "p521"])
def test_what_the_real_tool_signed(curve: str) -> None:
    """tests/data/model_signing/README.md says how these were made."""
    found = read((REAL / f"{curve}.sig").read_bytes(), key := PublicKey(str(REAL / f"{curve}.pem")))
    files = {path for path in (REAL / "model").rglob("*") if path.is_file()}
    assert found.digests == {str(path.relative_to(REAL / "model")): sha256(path.read_bytes()) for path in files}
    assert found.signer == key.signer == f"sha256:{sha256((REAL / f'{curve}.pem').read_bytes())}"


def test_what_the_real_tool_signed_of_one_file() -> None:
    found = read((REAL / "one_file.sig").read_bytes(), PublicKey(str(REAL / "p256.pem")))
    assert found.digests == {".": sha256((REAL / "model/unet/model.safetensors").read_bytes())}


@pytest.mark.parametrize(
    ("name", "said"), [("shards", "parts of files (shards)"), ("blake2", "'blake2b', want 'sha256'")]
)
def test_what_the_real_tool_hashed_in_another_way(name: str, said: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read((REAL / f"{name}.sig").read_bytes(), PublicKey(str(REAL / "p256.pem")))
    assert said in str(caught.value)


def test_the_signatures_of_the_tests_are_like_those_of_the_tool(key: PublicKey) -> None:
    assert read(bundle(FILES), key) == ({path: sha256(data) for path, data in FILES.items()}, signer(), "model.sig")
    real = json.loads((REAL / "p256.sig").read_text())
    made = json.loads(bundle(FILES))
    assert [made.keys(), made["dsseEnvelope"].keys()] == [real.keys(), real["dsseEnvelope"].keys()]


def with_two_signatures() -> dict[str, Any]:
    found = signed(statement(LISTED))
    found["dsseEnvelope"]["signatures"] *= 2
    return found


def swapped() -> dict[str, Any]:
    """The signature of one payload with another payload."""
    return {
        **signed(statement(LISTED)),
        "dsseEnvelope": {
            **signed(statement(LISTED))["dsseEnvelope"],
            "payload": signed(statement([("a", B)]))["dsseEnvelope"]["payload"],
        },
    }


def without_hint(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "verificationMaterial": {"publicKey": {}}}


FORGED: dict[str, Callable[[], Any]] = {
    "another key": lambda: signed(statement(LISTED), key=OTHER),
    "another key and no hint": lambda: without_hint(signed(statement(LISTED), key=OTHER)),
    "another key and our hint": lambda: {
        **signed(statement(LISTED), key=OTHER),
        "verificationMaterial": signed(statement(LISTED))["verificationMaterial"],
    },
    "the hint of another key": lambda: {
        **signed(statement(LISTED)),
        "verificationMaterial": signed(statement(LISTED), key=OTHER)["verificationMaterial"],
    },
    "another payload": swapped,
    "a signature of another kind of payload": lambda: signed(statement(LISTED), kind="application/json"),
    "another hash": lambda: signed(statement(LISTED), algorithm=hashes.SHA384()),
}


@pytest.mark.parametrize("made", FORGED.values(), ids=FORGED)
def test_a_signature_of_anything_else_is_refused(made: Callable[[], Any], key: PublicKey) -> None:
    assert read(without_hint(signed(statement(LISTED))), key).digests == dict(LISTED)  # old signatures name no key
    with pytest.raises(IntegrityError, match=r"model\.sig is not signed by .*release\.pem") as caught:
        read(made(), key)
    assert caught.value.expected == signer()
    assert "ask the publisher which key signs" in caught.value.hint


def changed(path: str, value: Any, found: Any = None) -> Any:
    """A bundle, or another document, with another value at a path of keys; ``None`` removes it."""
    document = json.loads(json.dumps(signed(statement(LISTED)) if found is None else found))
    *parents, last = (int(name) if name.isdigit() else name for name in path.split("/"))
    at = document
    for name in parents:
        at = at[name]
    at[last] = value
    if value is None:
        del at[last]
    return document


def said(path: str, value: Any) -> dict[str, Any]:
    """A bundle whose signed statement has another value."""
    return signed(changed(path, value, statement(LISTED)))


SAME_ORDER = statement(LISTED)["subject"]
REFUSED: dict[str, tuple[Any, str]] = {
    "empty": (b"", "is not JSON"),
    "a web page": (b"<!doctype html>", "is not JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "is not UTF-8"),
    "a list": (b"[]", "is not a JSON object"),
    "a key twice": (b'{"mediaType": "a", "mediaType": "b"}', "has the key 'mediaType' twice"),
    "nested": (b'{"a":' + b"[" * 200_000, "is nested too deeply"),
    "a number of 5,000 digits": (b'{"a":' + b"1" * 5000 + b"}", "is not JSON"),
    "another media type": (changed("mediaType", "application/json"), "has the mediaType 'application/json'"),
    "no material": (changed("verificationMaterial", None), "has no verificationMaterial"),
    "a certificate": (changed("verificationMaterial", {"certificate": {}}), "want one that was made with a key"),
    "certificates": (
        changed("verificationMaterial", {"x509CertificateChain": {}}),
        "with a certificate, or without a key",
    ),
    "no key": (changed("verificationMaterial", {}), "has no publicKey"),
    "a hint that is no digest": (
        changed("verificationMaterial/publicKey/hint", "\x1b[2J"),
        "has the key hint '\\x1b[2J', want the sha256 of a key",
    ),
    "another type": (
        changed("dsseEnvelope/payloadType", "text/plain"),
        "has the dsseEnvelope.payloadType 'text/plain'",
    ),
    "two signatures": (with_two_signatures(), "has 2 signatures, want one"),
    "no signature": (changed("dsseEnvelope/signatures", []), "has 0 signatures"),
    "a signature that is a string": (changed("dsseEnvelope/signatures", ["MEUC"]), "has no sig"),
    "not base64": (changed("dsseEnvelope/payload", "e30=\n"), "has a payload that is not base64"),
    "not ASCII": (changed("dsseEnvelope/signatures/0/sig", "ä"), "has a sig that is not base64"),
    "a payload that is not JSON": (signed(b"weights"), "is not JSON"),
    "a payload with a key twice": (signed(b'{"_type": 1, "_type": 2}'), "has the key '_type' twice"),
    "another statement": (said("_type", "https://in-toto.io/Statement/v0.1"), "has the _type"),
    "model-signing 0.2": (said("predicateType", "https://model_signing/Digests/v0.1"), "has the predicateType"),
    "shards": (said("predicate/serialization/method", "shards"), "parts of files (shards)"),
    "another method": (said("predicate/serialization/method", "zip"), "serialization.method 'zip', want 'files'"),
    "no method": (said("predicate/serialization", None), "has no predicate.serialization.method"),
    "another digest": (said("predicate/resources/0/algorithm", "sha512"), "has the algorithm 'sha512'"),
    "no files": (signed(statement({})), "lists no file"),
    "resources that are an object": (said("predicate/resources", {}), "want an array, got an object"),
    "a resource that is a list": (said("predicate/resources/0", []), "has no algorithm"),
    "a digest in upper case": (signed(statement([("a", A.upper())])), "want 64 lower-case hex digits"),
    "a short digest": (signed(statement([("a", "ab")])), "want 64 lower-case hex digits"),
    "another order": (signed({**statement(LISTED[::-1]), "subject": SAME_ORDER}), "contradicts itself"),
    "a digest more": (signed({**statement([*LISTED, ("d", A)]), "subject": SAME_ORDER}), "contradicts itself"),
    "two subjects": (said("subject", SAME_ORDER * 2), "has 2 subjects"),
    "a subject without a digest": (said("subject/0/digest", {}), "has no digest.sha256"),
    "a path twice": (signed(statement([("a", A), ("a", A)])), "lists 'a' twice"),
    "outside": (signed(statement([("../a", A), ("b", B)])), "'../a': has an empty, `.` or `..` segment"),
    "absolute": (signed(statement([("/etc/passwd", A)])), "'/etc/passwd': is absolute"),
    "a backslash": (signed(statement([("a\\b", A)])), "holds a backslash"),
    "an escape": (signed(statement([("\x1b[2J", A)])), "'\\x1b[2J': holds a control"),
    "a lone surrogate": (signed(statement([("\ud800", A)])), "holds a control or unprintable character"),
    "one file among others": (signed(statement([(".", A), ("a", B)])), "'.': has an empty, `.` or `..` segment"),
    "clashing": (signed(statement([("a/B", A), ("a/b", B)])), "differs from 'a/B' only in case"),
    "a file and its parent": (signed(statement([("a", A), ("a/b", B)])), "is a file and the parent of"),
    "one file without a digest": (signed(statement([(".", "1" * 63)])), "want 64 lower-case hex digits"),
}


@pytest.mark.parametrize(("data", "problem"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(data: Any, problem: str, key: PublicKey) -> None:
    with pytest.raises(ManifestError) as caught:
        read(data, key)
    message = str(caught.value)
    assert problem in message
    assert message.startswith("model.sig: ")
    assert "nothing was changed; " in message
    assert message.replace("\n", "").isprintable()


def test_all_bad_paths_are_named(key: PublicKey) -> None:
    with pytest.raises(ManifestError) as caught:
        read(signed(statement([("../a", A), ("b", B), ("/c", A)])), key)
    assert [each.partition(":")[0] for each in caught.value.problems] == ["lists '../a'", "lists '/c'"]


VALID = bundle(FILES)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
PATHS = [
    *("mediaType", "verificationMaterial", "verificationMaterial/publicKey", "verificationMaterial/publicKey/hint"),
    *("dsseEnvelope", "dsseEnvelope/payload", "dsseEnvelope/payloadType", "dsseEnvelope/signatures"),
    *("dsseEnvelope/signatures/0/sig", "dsseEnvelope/signatures/0/keyid"),
]
SAID = [
    *("_type", "subject", "subject/0/digest", "subject/0/digest/sha256", "predicateType", "predicate"),
    *("predicate/resources", "predicate/resources/0/name", "predicate/resources/0/digest"),
    *("predicate/resources/0/algorithm", "predicate/serialization", "predicate/serialization/method"),
]


@settings(max_examples=50, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=50),
        st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)).map(
            lambda at: VALID[: at[0]] + bytes([at[1]]) + VALID[at[0] + 1 :]
        ),
        st.tuples(st.sampled_from(PATHS), JSON).map(lambda change: json.dumps(changed(*change)).encode()),
        st.tuples(st.sampled_from(SAID), JSON).map(lambda change: json.dumps(said(*change)).encode()),
        st.lists(st.tuples(st.text(max_size=5), st.sampled_from([A, B]))).map(
            lambda files: json.dumps(signed(statement(files))).encode()
        ),
    )
)
def test_any_other_bundle_is_read_or_refused_in_our_words(data: bytes) -> None:
    """Whatever is read is what the key signed, and a manifest takes it."""
    try:
        found = read(data, held_key())
    except (ManifestError, IntegrityError):
        return
    if list(found.digests) != ["."]:
        files = {path: {"sha256": digest} for path, digest in found.digests.items()}
        assert Manifest.load({"checkpoints": {"m": {"urls": [], "files": files}}})


def held_key(found: list[PublicKey] = []) -> PublicKey:  # noqa: B006 (made once)
    if not found:
        import tempfile

        with tempfile.NamedTemporaryFile() as file:
            file.write(pem())
            file.flush()
            found.append(PublicKey(file.name))
    return found[0]


KEYS: dict[str, tuple[Callable[[], bytes], str]] = {
    "a curve that Model Signing does not have": (
        lambda: pem(ec.generate_private_key(ec.SECP256K1())),
        "holds a key on the curve secp256k1; want ECDSA on P-256, P-384 or P-521",
    ),
    "RSA": (lambda: pem(rsa.generate_private_key(public_exponent=65537, key_size=1024)), "holds a key of another kind"),
    "Ed25519": (lambda: pem(ed25519.Ed25519PrivateKey.generate()), "holds a key of another kind"),
    "empty": (lambda: b"", "is not a public key in PEM"),
    "a signature": (lambda: VALID, "is not a public key in PEM"),
    "a torn key": (lambda: pem()[:100], "is not a public key in PEM"),
    "a private key": (
        lambda: (REAL / "p256.pem").read_bytes().replace(b"PUBLIC", b"PRIVATE"),
        "is not a public key in PEM",
    ),
    "a large file": (lambda: pem() + b" " * (1 << 16), "has more than 65.5 kB"),
}


@pytest.mark.parametrize(("made", "problem"), KEYS.values(), ids=KEYS)
def test_keys_that_are_refused(made: Callable[[], bytes], problem: str, tmp_path: Path) -> None:
    (tmp_path / "release.pem").write_bytes(made())
    with pytest.raises(ValueError, match=f"release.pem {problem.replace('(', '[(]')}"):
        PublicKey(str(tmp_path / "release.pem"))


def test_a_key_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read .*release\.pem"):
        PublicKey(str(tmp_path / "release.pem"))


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("beside", [True, False])
def test_a_bundle_of_a_server_is_bounded(beside: bool, announced: bool, key: PublicKey, origin: Origin) -> None:
    sent: list[int] = []

    def endless(exchange: Any) -> None:
        exchange.head(200, {"Content-Length": 1 << 40} if announced else {"Connection": "close"})
        while not exchange.origin.stopping.is_set() and len(sent) < 64:
            exchange.body(b"{" * (1 << 20))
            sent.append(1)

    origin.put("/m/model.sig", b"", always=endless)
    draft = Draft("m", [origin.url("/m")], None, True, {})
    with pytest.raises(DownloadError, match=f"it has more than {MAX_BYTES} bytes"):
        read_signature(draft, key, None if beside else origin.url("/m/model.sig"))
    assert len(sent) < 64


def test_a_bundle_on_disk_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_local(str(tmp_path / "x"), 5) == b"12345"
    with pytest.raises(ValueError, match="has more than 4 bytes"):
        read_local(str(tmp_path / "x"), 4)
    assert MAX_BYTES == 16 * 1024**2


def test_without_cryptography(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(ValueError, match=r"needs cryptography: pip install 'weightcache\[sign\]'"):
        PublicKey(write_key(str(tmp_path / "release.pem"), KEY))
