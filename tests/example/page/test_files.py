"""The page in a real browser: files that are no photos are refused before they are sent, with what to do."""

from __future__ import annotations

import io
import struct

import httpx
import pytest
from PIL import Image, PngImagePlugin
from playwright.sync_api import Browser, expect

from browsing import Visit, file, visiting
from page_server import Told, backend_of
from serving import photo, serving

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
HEIF = b"\0\0\0\x18ftypmif1\0\0\0\0mif1miaf" + bytes(100)
BY_COMPATIBLE_BRAND = b"\0\0\0\x1cftypxxxx\0\0\0\0miafheixabcd" + bytes(100)
IPHONE = "On an iPhone, choose Settings > Camera > Formats > Most Compatible for the next photos."
OTHERS = {
    "heic": (HEIC, f"The file is HEIC, and only JPEG, PNG and WebP are taken. Export it as JPEG. {IPHONE}"),
    "heif": (HEIF, f"The file is HEIF, and only JPEG, PNG and WebP are taken. Export it as JPEG. {IPHONE}"),
    "brand": (
        BY_COMPATIBLE_BRAND,
        f"The file is HEIC, and only JPEG, PNG and WebP are taken. Export it as JPEG. {IPHONE}",
    ),
    "avif": (b"\0\0\0\x18ftypavif" + bytes(100), "The file is AVIF, and only JPEG, PNG and WebP are taken. Export it"),
    "film": (b"\0\0\0\x18ftypqt  " + bytes(100), "The file is a QuickTime film, and only"),
    "gif": (
        b"GIF89a" + bytes(100),
        "The file is a GIF, and only JPEG, PNG and WebP are taken. Save it as one of these.",
    ),
    "tiff": (b"II*\0" + bytes(100), "The file is a TIFF or a camera's raw photo, and only"),
    "jxl": (b"\xff\x0a" + bytes(100), "The file is JPEG XL, and only"),
    "pdf": (b"%PDF-1.7", "The file is a PDF, and only"),
    "text": (b"this is no photo", "The file is no JPEG, PNG or WebP, whatever its name says"),
    "short": (b"\0\0\0\x18ftyp", "The file is no JPEG, PNG or WebP"),
    "empty": (b"", "The file is empty. Choose a JPEG, PNG or WebP."),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_kind_of_file_is_refused_before_it_is_sent(visit: Visit, kind: str) -> None:
    data, reason = OTHERS[kind]
    visit.choose("photo.jpg", data, "image/jpeg")
    expect(visit.row("photo.jpg")).to_contain_text("Refused")
    expect(visit.row("photo.jpg")).to_contain_text(reason)
    expect(visit.said).to_contain_text(f"photo.jpg: Refused: {reason}")
    expect(visit.page.get_by_role("button", name="Try again")).to_have_count(0)
    expect(visit.page.get_by_text("No crops of photo.jpg")).to_be_visible()
    assert visit.posts == []


@pytest.mark.parametrize("kind", ["heic", "heif", "brand", "avif", "gif", "jxl", "text"])
def test_the_server_refuses_what_the_page_does(client: httpx.Client, kind: str) -> None:
    assert client.post("/v1/detect", files={"image": OTHERS[kind][0]}).status_code == 415


def test_the_others_are_sent(visit: Visit) -> None:
    visit.choose_all(file("one.png"), file("IMG_1.HEIC", HEIC), file("two.jpg", photo(50, 40, "JPEG")))
    expect(visit.page.get_by_text("2 of 3 done, 1 failed")).to_be_visible()
    expect(visit.row("two.jpg")).to_contain_text("2 garments")
    assert len(visit.posts) == 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photo_is_known_by_its_bytes_not_by_its_name(visit: Visit, kind: str) -> None:
    visit.choose("picture.heic", photo(60, 40, kind), "image/heic")
    expect(visit.cards).to_have_count(2)


def test_a_photo_of_too_many_bytes_is_not_sent(browser: Browser) -> None:
    with serving(backend_of(Told()), max_bytes=1000) as client, visiting(browser, client) as visit:
        visit.choose("large.png", photo() + bytes(1000))
        reason = "bytes, and at most 1,000 are taken: send a smaller one"
        expect(visit.row("large.png")).to_contain_text("Refused")
        expect(visit.row("large.png")).to_contain_text(reason)
        assert visit.posts == []


def exif(kind: int, turned: int, order: str) -> bytes:
    """Exif data whose only entry is an orientation, of this type."""
    value = struct.pack(f"{order}HH" if kind == 3 else f"{order}I", *([turned, 0] if kind == 3 else [turned]))
    entry = struct.pack(f"{order}HHI", 0x0112, kind, 1) + value
    start = struct.pack(f"{order}2sHI", b"MM" if order == ">" else b"II", 42, 8)
    return b"Exif\0\0" + start + struct.pack(f"{order}H", 1) + entry + bytes(4)


def with_xmp(chunk: str) -> bytes:
    """A PNG with compressed XMP."""
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_itxt("Comment", "nothing of interest", zip=True)
    xmp = '<rdf:Description tiff:Orientation="3"/>'
    if chunk == "iTXt":
        info.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    else:
        info.add_text("XML:com.adobe.xmp", xmp, zip=True)
    Image.open(io.BytesIO(photo())).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


LONG, SHORT = 4, 3
TURNED = {
    f"{kind}, {name} of 32 bits": photo(60, 40, kind, exif=exif(LONG, 3, order))
    for kind in ("JPEG", "PNG", "WEBP")
    for order, name in {">": "big-endian", "<": "little-endian"}.items()
} | {f"PNG, XMP in {chunk}": with_xmp(chunk) for chunk in ("iTXt", "zTXt")}
UPRIGHT = {
    f"{kind}, {name}": photo(60, 40, kind, exif=exif(of, turned, ">"))
    for kind in ("JPEG", "PNG", "WEBP")
    for name, of, turned in (("1 of 16 bits", SHORT, 1), ("1 of 32 bits", LONG, 1))
} | {"JPEG, 3 of 16 bits": photo(60, 40, "JPEG", exif=exif(SHORT, 3, ">"))}


@pytest.mark.parametrize("case", TURNED)
def test_what_browsers_do_not_turn_is_left_to_the_server(visit: Visit, case: str) -> None:
    with Image.open(io.BytesIO(TURNED[case])) as image:
        assert image.getexif()[0x0112] == 3  # as the server reads it
    visit.choose("photo", TURNED[case])
    expect(visit.cards).to_have_count(2)
    garments = visit.page.get_by_role("region", name="Garments")
    expect(garments).to_contain_text("The file says that the photo must be turned")
    assert [each.rpartition("/")[2] for each in visit.posts] == ["crops"]


@pytest.mark.parametrize("case", UPRIGHT)
def test_what_browsers_show_upright_is_not(visit: Visit, case: str) -> None:
    visit.choose("photo", UPRIGHT[case])
    expect(visit.cards).to_have_count(2)
    assert [each.rpartition("/")[2] for each in visit.posts] == ["masks"]


def test_a_file_that_cannot_be_read_is_refused(browser: Browser, client: httpx.Client) -> None:
    gone = "Blob.prototype.arrayBuffer = () => Promise.reject(new DOMException('gone', 'NotReadableError'))"
    with visiting(browser, client, script=gone) as visit:
        visit.choose()
        expect(visit.row("photo.png")).to_contain_text("it has changed since you chose it. Choose it again.")
        assert visit.posts == []
