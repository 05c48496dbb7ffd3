"""What people and programs send that is no photo, or too much of one: a server process takes it all, and lives."""

from __future__ import annotations

import base64
import io
import re
import socket
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fashion_crop.web.backend import Backend
from serving import noise, photo, process, serving
from support import until

MB = 1_000_000
SERVER = """
import socket, sys
import uvicorn
from fakes import FakeDetector, Gate, fake_backend
from fashion_crop.web.service import Settings, create_app

listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
detector = FakeDetector(gate=Gate() if "held" in sys.argv else None)
app = create_app(fake_backend(detector), settings=Settings(max_queue=4))
uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
"""


@dataclass
class Server:
    """A server process, and a client of it."""

    pid: int
    port: int
    client: httpx.Client

    def crops(self, data: bytes, name: str = "photo.jpg", **fields: Any) -> httpx.Response:
        return self.client.post("/v1/crops", files={"image": (name, data)}, data=fields)

    def resident(self, most: bool = False) -> int:
        """Bytes of memory that it takes, or the most that it took since `forget_most`."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        return 1024 * int(re.search(rf"{'VmHWM' if most else 'VmRSS'}:\s+(\d+) kB", status)[1])

    def forget_most(self) -> None:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5", encoding="ascii")  # proc_pid_clear_refs(5)

    def raw(self, head: bytes) -> bytes:
        """Send bytes, and return all that comes back until the server hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            answer = b""
            try:
                connection.sendall(head)
                while received := connection.recv(65536):
                    answer += received
            except ConnectionError:  # it may hang up before it has read everything
                pass
        return answer

    def form(self, body: bytes, content_type: str = "multipart/form-data; boundary=b") -> int:
        """Send a body as a form, and return the status."""
        headers = {"Content-Type": content_type.encode("latin-1")}
        return self.client.post("/v1/crops", content=body, headers=headers).status_code


@contextmanager
def started(*argv: str) -> Iterator[Server]:
    with process(SERVER, *argv) as child:
        port = int(child.line())
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            until(lambda: client.get("/readyz").status_code == 200)
            yield Server(child.pid, port, client)
            assert child.poll() is None


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with started() as server:
        yield server


@pytest.fixture(autouse=True)
def lives(server: Server) -> Iterator[None]:
    yield
    assert server.client.get("/healthz").status_code == 200
    assert server.crops(photo()).status_code == 200


# Photos.


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has no pixels."""
    head = struct.pack(">4sIIBBBBB", b"IHDR", width, height, 8, 2, 0, 0, 0)
    body = struct.pack(">I4s", 4, b"IDAT") + zlib.compress(b"")[:4]
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + body + bytes(4)


def jpeg_header(width: int, height: int) -> bytes:
    data = photo(kind="JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("photo.jpg", photo(kind="JPEG"))
    return buffer.getvalue()


RED = Image.new("RGB", (60, 40), "red")
SIXTEEN_BITS = Image.fromarray(np.full((40, 60), 40_000, dtype=np.uint16))
PALETTE = RED.quantize(4)
PHOTOS = {
    "1 by 1": (saved(Image.new("RGB", (1, 1)), "PNG"), 200),
    "animated": (saved(RED, "WEBP", save_all=True, append_images=[Image.new("RGB", (60, 40))]), 200),
    "CMYK": (saved(RED.convert("CMYK"), "JPEG"), 200),
    "16 bits": (saved(SIXTEEN_BITS, "PNG"), 200),
    "palette with alpha": (saved(PALETTE, "PNG", transparency=0), 200),
    "invalid colour profile": (saved(RED, "PNG", icc_profile=b"nonsense" * 100), 200),
    "truncated": (photo(kind="JPEG")[:-100], 400),
    "header alone": (png_header(60, 40), 400),
    "65,000 by 65,000 PNG": (png_header(65_000, 65_000), 413),
    "65,000 by 65,000 JPEG": (jpeg_header(65_000, 65_000), 413),
    "2 billion by 2 billion": (png_header(2**31 - 1, 2**31 - 1), 413),
    "GIF": (saved(RED, "GIF"), 415),
    "TIFF": (saved(RED, "TIFF"), 415),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 415),
    "zip": (zipped(), 415),
    "text": (b"not a photo", 415),
    "nothing": (b"", 400),
    "21 MB": (bytes(21 * MB), 413),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_photos_of_all_kinds(server: Server, kind: str) -> None:
    data, status = PHOTOS[kind]
    response = server.crops(data, prompts="shirt")
    assert response.status_code == status, response.text
    if status != 200:
        assert response.json()["error"]["code"].startswith("image-")


ODD = {
    **{kind: data for kind, (data, status) in PHOTOS.items() if status == 200},
    "a line": saved(Image.new("RGB", (2048, 1), "red"), "PNG"),
    "a long line": saved(Image.new("L", (1, 60_000), 9), "PNG"),
}


def test_what_is_taken_goes_through_the_models_too(backend: Backend) -> None:
    fields = {"box_threshold": "0", "text_threshold": "0", "padding": "1", "background": "original"}
    with serving(backend) as client:
        for kind, data in ODD.items():
            response = client.post("/v1/crops", files={"image": data}, data=fields)
            assert response.status_code == 200, (kind, response.text)
            size = response.json()["image"]
            for garment in response.json()["garments"]:
                left, top, right, bottom = garment["crop_box"]
                assert 0 <= left < right <= size["width"], kind
                assert 0 <= top < bottom <= size["height"], kind


@pytest.mark.parametrize("aspect", ["original", "1:1", "4:5"])
@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_the_oddest_photos_are_rendered_or_refused(backend: Backend, aspect: str, kind: str) -> None:
    fields = {"box_threshold": "0", "text_threshold": "0", "prompts": "shirt", "background": "#102030"}
    with serving(backend) as client:
        for name in ("1 by 1", "a line", "a long line"):
            files = {"image": (name, ODD[name])}
            response = client.post("/v1/crops", files=files, data={**fields, "aspect": aspect, "format": kind})
            assert response.status_code in (200, 422), (name, response.text)
            if response.status_code == 422:  # too many pixels, or too many on a side for the format
                (problem,) = response.json()["error"]["fields"]
                assert name == "a long line", response.text
                assert problem["field"] in ("padding", "format")
                continue
            for garment in response.json()["garments"]:
                left, top, right, bottom = garment["crop_box"]
                with Image.open(io.BytesIO(base64.b64decode(garment["picture"]))) as picture:
                    assert picture.size == (right - left, bottom - top), name


def test_the_masks_of_what_is_taken_cover_a_part_of_the_photo(backend: Backend) -> None:
    fields = {"box_threshold": "0", "text_threshold": "0"}
    with serving(backend) as client:
        for kind, data in ODD.items():
            response = client.post("/v1/masks", files={"image": data}, data=fields)
            assert response.status_code == 200, (kind, response.text)
            size = response.json()["image"]
            for garment in response.json()["garments"]:
                left, top, right, bottom = garment["mask_box"]
                assert 0 <= left < right <= size["width"], kind
                assert 0 <= top < bottom <= size["height"], kind
                with Image.open(io.BytesIO(base64.b64decode(garment["mask"]))) as mask:
                    assert (mask.format, mask.mode) == ("PNG", "L"), kind


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_upright_whatever_way_the_camera_was_held(server: Server, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = server.crops(saved(RED, "JPEG", exif=exif)).json()["image"]
    assert (image["width"], image["height"]) == ((60, 40) if orientation < 5 else (40, 60))


# Forms.

PHOTO = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%b\r\n' % photo()


def field(name: bytes, value: bytes) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name, value)


FORMS = {
    "good": (PHOTO + b"--b--", 200),
    "no end": (PHOTO[:100], 422),
    "another boundary": (PHOTO.replace(b"--b", b"--c") + b"--c--", 400),
    "no name": (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--", 400),
    "10,000 fields": (PHOTO + field(b"f", b"") * 10_000 + b"--b--", 400),
    "10,000 files": (PHOTO * 10_000, 400),
    "999 fields of a name": (PHOTO + field(b"padding", b"0") * 999 + b"--b--", 422),
    "field of 2 MB": (PHOTO + field(b"prompts", b"a" * 2 * MB) + b"--b--", 400),
    "part with a header of 10 MB": (b"--b\r\nX: " + b"y" * 10 * MB, 400),
    "part with a million headers": (b"--b\r\n" + b"X: y\r\n" * MB, 400),
    "nothing but lines": (PHOTO[:70] + b"\r\n" * 9 * MB, 422),
    "almost the boundary": (PHOTO[:70] + b"\r\n--" * 4 * MB, 422),
    "60,000 commas": (PHOTO + field(b"prompts", b"," * 60_000 + b"shirt") + b"--b--", 200),
    "bytes that are no text": (PHOTO + field(b"prompts", b"\xff\xfe\x00,sh\xc3\x28rt,\xed\xa0\x80") + b"--b--", 200),
    "a name that is no text": (PHOTO + field(b"\xed\xa0\x80\xff", b"") + b"--b--", 422),
}


@pytest.mark.parametrize("kind", FORMS)
def test_forms_of_all_kinds(server: Server, kind: str) -> None:
    body, status = FORMS[kind]
    assert server.form(body) == status


@pytest.mark.parametrize("parameter", ["", "; boundary=", "; boundary=" + "b" * 300, "; boundary=\xe9", "; boundary"])
def test_a_boundary_that_is_none(server: Server, parameter: str) -> None:
    assert server.form(PHOTO + b"--b--", f"multipart/form-data{parameter}") == 400


@pytest.mark.parametrize("charset", ["utf-7", "unicode_escape", "undefined", "zlib", "idna", "utf-16", "\xe9"])
def test_an_encoding_that_makes_what_is_no_text(server: Server, charset: str) -> None:
    body = PHOTO + field(b"prompts", rb"\ud800,+2AA-") + b"--b--"
    assert server.form(body, f"multipart/form-data; boundary=b; charset={charset}") == 415


def test_the_name_of_a_file_is_not_used(server: Server) -> None:
    for name in ("../../etc/passwd", "/dev/null", "a\x00b.png", "C:\\a.png", "ü" * 1000, '"; name="prompts'):
        assert server.crops(photo(), name=name, prompts="shirt").status_code == 200


def test_prompts_of_all_kinds(server: Server) -> None:
    for prompts in (
        "衬衫,пальто,فستان",
        "👗,👨‍👩‍👧",
        "<script>alert(1)</script>",
        "a\x00b",
        "shirt" * 40,
        "[SEP]. .?",
    ):
        response = server.crops(photo(), prompts=prompts)
        assert response.status_code == 200, prompts
        labels = {each["label"] for each in response.json()["garments"]}
        assert labels == {each.strip() for each in prompts.split(",")}
    for number in (51, 300, 5000):
        assert server.crops(photo(), prompts=",".join(map(str, range(number)))).status_code == 422


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"y" * 500_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 500_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"POST /v1/crops HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/crops HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    ],
    ids=["header of 500 kB", "path of 500 kB", "50,000 headers", "negative length", "two lengths", "TLS"],
)
def test_heads_of_all_kinds(server: Server, head: bytes) -> None:
    # It may hang up while there is more of a long one to read, and then the answer may never arrive.
    assert server.raw(head)[9:12] in ((b"400", b"") if len(head) > 100_000 else (b"400",))


# Many, and large.


def test_fifty_at_once_get_an_answer_and_memory_stays_bounded(server: Server) -> None:
    large = noise(1500, 1480)  # 6.7 MB
    server.crops(large, prompts="shirt")

    def ask(_: int) -> int:
        files = {"image": ("a.png", large)}
        return httpx.post(
            f"{server.client.base_url}/v1/crops", files=files, data={"prompts": "shirt"}, timeout=120
        ).status_code

    before = server.resident()
    server.forget_most()
    with ThreadPoolExecutor(50) as pool:
        answers = Counter(pool.map(ask, range(50)))
    assert set(answers) <= {200, 503}
    assert answers[200] >= 5  # the requests that were let in
    assert server.resident(most=True) < before + 200 * MB  # 50 of them are 333 MB, before anything is decoded


def test_photos_of_those_who_hang_up_are_let_go() -> None:
    large = noise(2500, 2500)[: 18 * MB]
    with started("held") as held:
        busy = begun(held, large)
        before = held.resident()
        for _ in range(30):
            begun(held, large).close()
        until(lambda: held.resident() < before + 100 * MB)  # 30 of them are 540 MB
        busy.close()


def begun(server: Server, data: bytes) -> socket.socket:
    """Send a whole request, once there is a place for it."""
    body = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%b\r\n--b--' % data
    head = "POST /v1/crops HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    while True:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n".encode())
        if connection.recv(1000).startswith(b"HTTP/1.1 100"):
            connection.sendall(body)
            return connection
        connection.close()
