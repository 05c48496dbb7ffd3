"""Signatures as `model_signing sign key` writes them, and every way to make a wrong one."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from support import sha256

PAYLOAD = "application/vnd.in-toto+json"
KEY, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())


def pem(key: Any = KEY) -> bytes:
    """The public half of a key."""
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def signer(key: Any = KEY) -> str:
    """What an entry has of a key."""
    return f"sha256:{sha256(pem(key))}"


def statement(digests: dict[str, str] | list[tuple[str, str]]) -> dict[str, Any]:
    """The statement that these paths have these digests."""
    listed = list(digests.items()) if isinstance(digests, dict) else digests
    try:
        whole = sha256(b"".join(bytes.fromhex(digest) for _, digest in listed))
    except ValueError:  # a test of a wrong digest
        whole = "0" * 64
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "model", "digest": {"sha256": whole}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": []},
            "resources": [{"name": name, "algorithm": "sha256", "digest": digest} for name, digest in listed],
        },
    }


def envelope(payload: bytes, key: Any = KEY, *, kind: str = PAYLOAD, algorithm: Any = None) -> dict[str, Any]:
    """The bundle of a payload, as data."""
    message = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)
    signature = key.sign(message, ec.ECDSA(algorithm or hashes.SHA256()))
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": hashlib.sha256(pem(key)).hexdigest()}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }


def bundle(files: dict[str, bytes], key: Any = KEY) -> bytes:
    """The signature of these files."""
    listed = statement({path: sha256(data) for path, data in sorted(files.items())})
    return json.dumps(envelope(json.dumps(listed).encode(), key)).encode()


def write_key(path: str = "release.pem", key: Any = KEY) -> str:
    """Write the public half of a key; return the path."""
    Path(path).write_bytes(pem(key))
    return path


def main() -> None:
    """Stand in for ``model_signing sign key --private_key KEY --signature FILE DIRECTORY``."""
    *verb, key_flag, private, signature_flag, signature, folder = sys.argv[1:]
    assert [*verb, key_flag, signature_flag] == ["sign", "key", "--private_key", "--signature"]
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path != Path(signature)]
    files = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    Path(signature).write_bytes(bundle(files, load_pem_private_key(Path(private).read_bytes(), None)))


if __name__ == "__main__":
    main()
