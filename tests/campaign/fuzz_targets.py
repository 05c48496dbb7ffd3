"""What the fuzz campaign feeds: each place where the library reads what others wrote, with valid examples of it."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

import requests
import urllib3
from requests.exceptions import InvalidHeader

from fuzz_inputs import json_of
from weightcache import DownloadError, IntegrityError, LoadError, Manifest, ManifestError, StorageError, Tag
from weightcache._coordination.lease_observation import Head
from weightcache._coordination.lock import LockWait
from weightcache._pinning.bounds import Bounds
from weightcache._pinning.hub_client import snapshot
from weightcache._pinning.model_signature import signed_files
from weightcache._pinning.unpinned_entries import HubUrl
from weightcache._runtime import tuning_constants
from weightcache._runtime.cancel import Cancel
from weightcache._runtime.unannounced_write_check import announce_writing
from weightcache._runtime.writer_identity import Writer, note_path
from weightcache._store import receipts, shard_index, tags
from weightcache._store.content_sniffing import foreign_content
from weightcache._store.inspect import inspect
from weightcache._store.journal import Journal, block_line, opened_line, partial_age, wiped_line
from weightcache._store.layout import Layout
from weightcache._transfer.content_disposition import suggested_name
from weightcache._transfer.error_response import RequestInfo, error_from
from weightcache._transfer.file_response import HttpBody
from weightcache._transfer.mirror_client import Client
from weightcache._transfer.mirror_stream import SourceError
from weightcache._transfer.retry_policy import seconds_to_wait
from weightcache._transfer.server_message import reason
from weightcache.cli.sha256sums import read_sha256sums
from weightcache.manifest.parse import parse_toml
from weightcache.manifest.validate import digest_problem, path_problem
from weightcache.torch._model_directory import find_shards
from weightcache.torch._safetensors_header import parse_header

Pump = tuple[bytes, bytes, bytes]  # a beginning, what is repeated, and an end
DIGEST = "ab" * 32
COMMIT = "c0" * 20
ENTRY = {"urls": ["https://a.b/m.pt"], "sha256": DIGEST, "size": 10, "file": "m.pt"}
DIRECTORY = {
    "urls": [f"hf://a/b@{COMMIT}"], "auth": "HF_TOKEN",
    "files": {"a/b.bin": {"sha256": DIGEST, "size": 10}, "c": {"sha256": DIGEST}},
}  # fmt: skip
MANIFEST = {"version": 1, "checkpoints": {"one": ENTRY, "two": DIRECTORY}}
TOML = f"""version = 1
[checkpoints.one]
urls = ["https://a.b/m.pt"]
sha256 = "{DIGEST}"
size = 10
file = "m.pt"
[checkpoints.two]
urls = ["hf://a/b@{COMMIT}"]
[checkpoints.two.files]
"a/b.bin" = {{ sha256 = "{DIGEST}", size = 10 }}
""".encode()
TENSORS = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [], "data_offsets": [24, 26]},
}
REFUSAL_HEADERS = ("X-Error-Code", "X-Error-Message", "WWW-Authenticate", "cf-mitigated", "Retry-After")
INDEX = {"metadata": {"total_size": 10}, "weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}


PAGES = 5  # of a listing of the Hub that lead to another one, at most


class Target(NamedTuple):
    """One place that reads what others wrote.

    Attributes:
        name: What is read.
        kind: What `read` takes: ``bytes``, ``json`` (bytes that are JSON), ``text`` or ``value`` (a Python value).
        valid: Valid examples.
        read: Reads it. What it returns is not empty if it is wrong: a sentence that says why.
        allowed: The errors that are documented.
        pumps: Inputs that grow, for which the time must not grow with the square of their length.
    """

    name: str
    kind: str
    valid: tuple[Any, ...]
    read: Callable[[Any], str | None]
    allowed: tuple[type[BaseException], ...] = ()
    pumps: tuple[Pump, ...] = ()


def silent(read: Callable[[Any], object]) -> Callable[[Any], str | None]:
    """Any result is right."""

    def work(data: Any) -> None:
        read(data)

    return work


def response_of(headers: dict[str, str], status: int = 200, body: bytes = b"") -> requests.Response:
    """A response as the library gets it from its client, without a network.

    Raises:
        InvalidHeader: It has two lengths; requests then calls urllib3's error so.
    """
    found = requests.Response()
    found.status_code, found.url, found.reason = status, "https://a.b/m.pt", "Reason"
    found.headers.update(headers)
    try:
        found.raw = urllib3.HTTPResponse(io.BytesIO(body), headers=headers, status=status, preload_content=False)
    except urllib3.exceptions.InvalidHeader as error:
        raise InvalidHeader(error) from None
    found.request = requests.Request("GET", "https://a.b/m.pt").prepare()
    return found


# Files --------------------------------------------------------------------------------------------------------------


def store_targets(folder: Path) -> list[Target]:
    layout = Layout(folder / "root")
    checkpoint = Manifest.load(MANIFEST)["two"]
    place = Path(layout.receipt(checkpoint))
    partial = folder / "partial"
    for each in (place.parent, partial):
        each.mkdir(parents=True)
    sizes = {"a/b.bin": 10, "c": 3}
    receipt = receipts.receipt_bytes(checkpoint, sizes, ["https://a.b/"])
    pins = {file.path: {"sha256": file.sha256, "size": sizes[file.path]} for file in checkpoint.files}
    for file in checkpoint.files:
        path = Path(layout.file(checkpoint, file))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(sizes[file.path]))

    def read_receipt(data: bytes) -> str | None:
        place.write_bytes(data)
        found = inspect(layout, checkpoint)
        for _, _, each in receipts.iter_receipts(layout):
            receipts.receipt_files(each)
        if found.state == "ready":
            said = json.loads(data)
            files = {path: {key: each[key] for key in ("sha256", "size")} for path, each in said["files"].items()}
            right = (said["format"], said["name"], said["digest"], files) == (1, "two", checkpoint.digest, pins)
            return None if right else "a receipt for something else is believed"
        return "a right receipt is not believed" if data in (receipt, json_of(json.loads(receipt))) else None

    def read_journal(data: bytes) -> str | None:
        (partial / "journal").write_bytes(data)
        found, age = Journal(str(partial)), partial_age(str(partial))
        return None if found.bytes >= 0 and math.isfinite(age) else f"{found.bytes} bytes, {age} s"

    lines = opened_line() + "".join(block_line(DIGEST, each, 1 << 20, 7) for each in range(5)) + wiped_line(DIGEST)
    return [
        Target("receipt", "json", (json.loads(receipt),), read_receipt, pumps=((b'{"files":{', b'"a":1,', b"}}"),)),
        Target(
            "journal", "bytes", (lines.encode(),), read_journal, pumps=((b"", b"opened 1\n", b""), (b"", b"a", b"\n"))
        ),
        tag_target(folder),
        Target("writer", "text", (str(Writer.new(layout.root)),), silent(_writer)),
    ]


def _writer(text: str) -> None:
    if found := Writer.parse(text):
        found.is_dead_here("/")


def tag_target(folder: Path) -> Target:
    """Publications, with a check that is right, so that what comes after it is reached."""
    layout, tag = Layout(folder / "tagged"), Tag("model", "prod")
    checkpoint = tags.declared("model", {"w.pt": {"sha256": DIGEST, "size": 10}}, is_directory=False)
    (folder / "tagged").mkdir()
    with announce_writing(layout.root):
        path = Path(tags.write_publication(layout, tags.Publication(tag, checkpoint, 5, "2026-01-01", 2))[0])

    def read(data: bytes) -> str | None:
        with suppress(ValueError, RecursionError, TypeError, AttributeError):
            document = json.loads(data)
            document["check"] = tags._check(document)
            data = json_of(document)
        path.write_bytes(data)
        problems = []
        for work in (
            lambda: tags.newest(layout, tag),
            lambda: tags.history(layout, tag),
            lambda: tags.retention(layout, 1),
        ):
            try:
                work()
            except StorageError as error:
                problems.append(str(error))
        return None if len(problems) in (0, 3) else f"one reader accepts it, and another does not: {problems}"

    return Target("tag", "json", (json.loads(path.read_bytes()),), read, (StorageError,))


def text_targets(folder: Path) -> list[Target]:
    """Files that people write, and notes of other processes."""
    root, sums = folder / "locked", folder / "SHA256SUMS"
    root.mkdir()
    note = Path(note_path(str(root), "holder"))
    settings = tuning_constants.Settings(report_interval=0.0)

    def read_note(data: bytes) -> str | None:
        note.write_bytes(data)
        waiting = LockWait(str(root), 60.0, lambda line: None, lambda: None, settings)
        waiting.poll()
        note.unlink()
        return None if len(waiting.holder) < 5000 else f"the holder has {len(waiting.holder)} characters"

    def read_sums(data: bytes) -> str | None:
        sums.write_bytes(data)
        found = read_sha256sums(str(sums))
        return next((f"{path!r} is no path of a manifest" for path in found if path_problem(path)), None)

    def load_value(value: Any) -> None:
        Manifest.load(value if isinstance(value, dict) else {"checkpoints": value})  # else it is a `TypeError`

    def read_toml(data: bytes) -> None:
        Manifest.load(parse_toml(data, "weights.toml"))

    sums_text = f"{DIGEST}  a/b.bin\nSHA256 (c) = {DIGEST}\n".encode()
    held = {"pid": 7, "doing": "downloading", "done": 5, "total": 10}
    return [
        Target("manifest (TOML)", "bytes", (TOML,), read_toml, (ManifestError,), (
            (b"a=[", b"[", b""), (b"", b"a.", b"a=1"), (b'a="', b"\\\\", b'"'), (b"", b"[a]\n", b""),
            (b"", b"#", b"\n"),            (b"a=", b"9", b""), (b"", b"\n", b""), (b"a='''", b"'", b""),
        )),
        Target("manifest (value)", "value", (MANIFEST,), load_value, (ManifestError,)),
        Target("lock note", "json", (held,), read_note, pumps=((b'{"doing":"', b"a", b'"}'),)),
        Target("sha256sums", "bytes", (sums_text,), read_sums, (ManifestError,), (
            (b"", b"SHA256 (", b""), (b"SHA256 (", b")", b""), (sums_text[:66], b"a/", b"a"), (b"", b"\n", b""),
        )),
        Target("lease", "value", ([1, "c", "held", 2, 3],), silent(Head.parse)),
    ]  # fmt: skip


# Weights ------------------------------------------------------------------------------------------------------------


def weight_targets(folder: Path) -> list[Target]:
    model = folder / "model"
    model.mkdir()
    for name in ("m-1.safetensors", "m-2.safetensors"):
        (model / name).touch()

    def read_index(data: bytes) -> None:
        (model / "model.safetensors.index.json").write_bytes(data)
        shard_index.missing_shards("model.safetensors.index.json", data, ["m-1.safetensors"])
        find_shards(str(model), lambda path, limit: Path(path).read_bytes()[:limit])

    def read_header(data: bytes) -> str | None:
        found = parse_header(data, 8 + len(data) + 26)
        wrong = [each for each in found.tensors if not 0 <= each.start <= each.end <= 8 + len(data) + 26]
        return f"{wrong[0]} lies outside of the file" if wrong and not found.problems else None

    return [
        Target("shard index", "json", (INDEX,), read_index, (LoadError, StorageError), (
            (b'{"weight_map":{', b'"a":"b",', b'"c":"d"}}'),
        )),
        Target("safetensors header", "json", (TENSORS,), read_header, pumps=(
            (b'{"a":', b"[", b""), (b'{"a":{"shape":[', b"1,", b"1]}}"), (b"{", b'"a":1,', b'"b":2}'),
            (b'{"a":{"dtype":"F32","data_offsets":[0,0],"shape":[', b"9", b"]}}"),
        )),
        Target("first bytes", "bytes", (b"<!DOCTYPE html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:"),
               silent(lambda data: foreign_content(data[:4096], data[:50].decode("latin-1"), name="m.bin"))),
    ]  # fmt: skip


def signature_target() -> Target:
    """A bundle of Model Signing whose signature is believed, so that its statement is reached."""
    bundle = json.loads((Path(__file__).parents[1] / "data/model_signing/p256.sig").read_bytes())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    hint = bundle["verificationMaterial"]["publicKey"]["hint"]
    key: Any = SimpleNamespace(path="key.pem", signer=f"sha256:{hint}", has_signed=lambda *arguments: True)

    def read(data: bytes) -> str | None:
        with suppress(ValueError, RecursionError, TypeError, LookupError):
            both = json.loads(data)
            both["bundle"]["dsseEnvelope"]["payload"] = base64.b64encode(json_of(both["statement"])).decode()
            data = json_of(both["bundle"])
        found = signed_files(data, key, name="model", source="model.sig")
        return next((f"{each!r} is no digest" for each in found.digests.values() if digest_problem(each)), None)

    valid = {"bundle": bundle, "statement": statement}
    return Target("signature", "json", (valid,), read, (ManifestError, IntegrityError))


# Answers of servers -------------------------------------------------------------------------------------------------


def header_targets() -> list[Target]:
    settings = tuning_constants.DEFAULT

    def content_range(value: str) -> str | None:
        headers = {"Content-Range": value, "ETag": value, "Content-Encoding": value, "Content-Length": value}
        body = HttpBody(response_of(headers, 206, b"x" * 50), settings, "https://a.b/m.pt", True, 10, 100, None)
        return None if body.offset == 10 and body.end is not None and body.end > 10 else f"{body.offset} to {body.end}"

    def whole(value: str) -> str | None:
        headers = {"Content-Length": value, "Content-Encoding": value, "ETag": value, "Content-Type": value}
        body = HttpBody(response_of(headers, 200, b"x" * 50), settings, "https://a.b/m.pt", False, 0, 100, None)
        while body.read_into(memoryview(bytearray(20))):
            pass
        return None

    def waits(name: str) -> Callable[[str], str | None]:
        def read(value: str) -> str | None:
            seconds = seconds_to_wait({name: value, "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": value})
            return None if seconds is None or (seconds >= 0 and math.isfinite(seconds)) else f"{seconds} s"

        return read

    def disposition(value: str) -> str | None:
        found = suggested_name(value, "https://a.b/m.pt?rscd=attachment%3B")
        return f"{found!r} is no name" if found and (path_problem(found) or "/" in found) else None

    names = ('attachment; filename="a b.pt"', "attachment; filename*=UTF-8''%e2%82%ac.pt; filename=b")
    return [
        Target("Content-Range", "text", ("bytes 10-59/100", "bytes 10-59/*"), content_range, (SourceError,), (
            (b"bytes ", b"1", b"-2/3"), (b"", b"gzip,", b""), (b'"', b"!", b""))),
        Target("heads of files", "text", ("100", "gzip", "text/html"), whole, (SourceError, InvalidHeader)),
        Target("Retry-After", "text", ("120", "Fri, 31 Dec 1999 23:59:59 GMT", "1.5, 3"), waits("Retry-After"), pumps=(
            (b"", b"1", b""), (b"", b" ", b"x"), (b"", b"(", b""), (b"", b"Mon,", b""), (b"1 Jan 2000 ", b"0:", b""))),
        Target("RateLimit", "text", ('"a";r=0;t=55', "limit=9, remaining=0, reset=55"), waits("RateLimit"), pumps=(
            (b"", b'"', b""), (b"", b"\\", b""), (b'"a";r=0', b";t=1", b""), (b"", b",", b""), (b"", b";r=", b""))),
        Target("Content-Disposition", "text", names, disposition, pumps=(
            (b"", b";filename=", b""), (b'a;filename="', b"\\", b""), (b"a;filename=", b"%41", b""),
            (b"a", b"; ", b""))),
        *_redirect_targets(),
        *_refusal_targets(),
    ]  # fmt: skip


class _NotSentError(requests.exceptions.ConnectionError):
    """Raised instead of a connection."""


REFUSED = [ip_network(each) for each in ("169.254.0.0/16", "fe80::/10", "100.100.100.200", "168.63.129.16")]
PLAIN = re.compile(r"(https?://)[a-z]+(\.[a-z]+)+(:[1-9][0-9]{0,3})?/[a-z0-9/]*(\?[a-z0-9=]+)?")


def _may_be_asked(host: str) -> bool:
    """Whether a host is no address of a metadata service; as the operating system reads addresses, such as `0xa9fe`."""
    with suppress(ValueError):
        address = ip_address(host)
        mapped = getattr(address, "ipv4_mapped", None)
        return not any((mapped or address) in each for each in REFUSED)
    with suppress(OSError, UnicodeError, ValueError):
        return _may_be_asked(socket.inet_ntoa(socket.inet_aton(host)))
    return True


def _redirect_targets() -> list[Target]:
    client = Client(Cancel(), tuning_constants.DEFAULT)
    asked, now = list[str](), {"Location": ""}

    def send(request: Any, **options: object) -> requests.Response:
        asked.append(request.url)
        if len(asked) > 1:
            raise _NotSentError
        return response_of(now, 302)

    client._session.send = send  # type: ignore[method-assign, assignment]

    def location(value: str) -> str | None:
        now["Location"] = value
        asked.clear()
        with suppress(SourceError):
            client.open("https://a.b/m.pt", auth=None, hub="", start=0, end=None, size=None)
        url = asked[1] if len(asked) > 1 else ""
        if url and not (url.startswith(("https://", "http://")) and _may_be_asked(urlsplit(url).hostname or "")):
            return f"{url!r} is asked"
        target = ""
        with suppress(ValueError):
            target = value if value.startswith(("https://", "http://")) else urljoin("https://a.b/m.pt", value)
        is_plain = re.fullmatch("[!-~]+", value) and PLAIN.fullmatch(target)
        return f"{url!r} is asked instead of {target!r}" if is_plain and url != target else None

    good = (
        "https://c.d/x?sig=1", "../n.pt", "//c.d/n", "https://a:b@[::1]:80/x#f", "http://169.254.169.254/latest",
        "http://[::ffff:a9fe:a9fe]/", "//2852039166/", "http://0xa9.0xfe.43518/x", "http://a@168.63.129.16:80/", "ftp://c.d/x",
        "file:///etc/passwd", "http://[fe80::1]/",
    )  # fmt: skip
    growing = ((b"https://", b"a.", b"/"), (b"", b"../", b""), (b"http://a/", b"%", b""))
    return [Target("Location", "text", good, location, pumps=growing)]


def _refusal_targets() -> list[Target]:
    info = RequestInfo(
        "https://a.b/m.pt?sig=secret", False, "HF_TOKEN", "HF_TOKEN", "https://huggingface.co/a/b", False
    )

    def read(data: bytes) -> str | None:
        text = data.decode("latin-1").replace("\r", "").replace("\n", "")
        headers = dict.fromkeys(
            ("X-Error-Code", "X-Error-Message", "WWW-Authenticate", "cf-mitigated", "Retry-After"), text[:300]
        )
        found = error_from(response_of(headers, 403 if len(data) % 2 else 401, data), info, None, 1.0)
        words = f"{found} {found.hint}{reason(data, ['secret'])}"
        return None if all(each.isprintable() for each in words) else f"{words!r} has characters that are no text"

    pages = (b"<Error><Code>AccessDenied</Code><Message>No</Message></Error>", b'{"error":{"message":["no"]}}')
    return [Target("refusal", "bytes", pages, read, pumps=((b"<Code>", b"<Code>", b""), (b'{"error":', b"[", b"")))]


# The Hub ------------------------------------------------------------------------------------------------------------


@contextmanager
def hub_target() -> Iterator[Target]:
    """Answers of the Hub's API, over a real connection."""
    model = {"id": "a/b", "sha": COMMIT, "siblings": [{"rfilename": "m.bin"}], "tags": [], "private": False}
    lfs = {"oid": DIGEST, "size": 10, "pointerSize": 100}
    tree = [
        {"type": "file", "path": "m.bin", "size": 10, "oid": "0" * 40, "lfs": lfs},
        {"type": "directory", "path": "d", "oid": "0" * 40},
        {"type": "file", "path": "c.json", "size": 3, "oid": "0" * 40},
    ]
    now: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            is_tree = "/tree/" in self.path
            data, link = now["tree" if is_tree else "model"], now["header"]
            self.send_response(now["status"])
            for name in ("X-Error-Code", "X-Error-Message", "X-Request-Id"):
                self.send_header(name, now["header"])
            if is_tree and now["asked"] < now["pages"]:  # only to this server, and not for ever
                link = f'<{os.environ["HF_ENDPOINT"]}{self.path[:200]}&{quote(link[:50])}>; rel="next"; {link}'
            self.send_header("Link", link)
            now["asked"] += is_tree
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def handle(self) -> None:
            with suppress(ConnectionError):  # an answer that is refused is not read to its end
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    def read(data: bytes) -> str | None:
        now.update(model=b"", tree=b"", status=200, header="", pages=0, asked=0)
        with suppress(ValueError, RecursionError, TypeError, KeyError, IndexError):
            both = json.loads(data)
            now.update(model=json_of(both["model"]), tree=json_of(both["tree"]))
            now["status"] = both["status"] if both["status"] in (400, 401, 403, 404, 418, 451) else 200
            now["header"] = re.sub(r"[^ -~]|[<>]", "", str(both["header"]))[:500]
            now["pages"] = min(both["pages"], PAGES) if type(both["pages"]) is int else 0
        found = snapshot(HubUrl("a/b", "main", ""), None, "model", Bounds(max_listed=1000))
        for each in found.files:
            if not (
                type(each.path) is str and type(each.size) is int and type(each.sha256) is type(each.git_id) is str
            ):
                return f"{each} is no file"
        wanted = max(now["pages"], 0) + 1
        return None if now["asked"] == wanted else f"{now['asked']} pages were asked for, and there are {wanted}"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    before = {name: os.environ.pop(name, None) for name in ("HF_ENDPOINT", "HF_TOKEN")}
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        allowed = (DownloadError, ManifestError)
        answers = [
            {"model": model, "tree": tree, "status": status, "header": "RepoNotFound", "pages": pages}
            for status, pages in ((200, 0), (200, 2), (200, PAGES), (401, 0), (404, 0))
        ]
        yield Target("Hub answer", "json", tuple(answers), read, allowed)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
        os.environ.update({name: value for name, value in before.items() if value is not None})
        if before["HF_ENDPOINT"] is None:
            del os.environ["HF_ENDPOINT"]


@contextmanager
def all_targets(folder: Path) -> Iterator[list[Target]]:
    """Every place, with files in ``folder``."""
    with hub_target() as hub:
        yield [
            *store_targets(folder),
            *text_targets(folder),
            *weight_targets(folder),
            signature_target(),
            *header_targets(),
            hub,
        ]
