"""The page in a real browser: the names of files, and the box of a crop, which the service computes in the same way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from browsing import Visit, unzipped, visiting
from fakes import FakeDetector, fake_backend
from fashion_crop.models.detection import Detection
from page_server import SHIRT, Told, backend_of
from serving import photo, serving


def of_crops(visit: Visit, function: str, *arguments: Any) -> Any:
    """Return what a function of the page returns."""
    code = f"async (all) => (await import('/page/crops.js')).{function}(...all)"
    return visit.page.evaluate(code, list(arguments))


@pytest.mark.parametrize(
    ("name", "stem"),
    {
        "e\u0301te\u0301.png": "été",
        "साड़ी.png": "साड़ी".replace("\u095c", "\u0921\u093c"),
        "กางเกงชั้น.png": "กางเกงชั้น",
        "_a__b?!c_.png": "a__b_c",
        "e\u0301" * 50 + ".png": "é" * 40,
        "\N{KISS MARK}.png": "photo",
    }.items(),
)
def test_a_name_keeps_letters_digits_and_marks_of_any_script(visit: Visit, name: str, stem: str) -> None:
    assert of_crops(visit, "stemOf", name) == stem


def test_labels_in_other_scripts_are_in_the_names_of_files(browser: Browser) -> None:
    found = [Detection("เสื้อ", 0.9, SHIRT.box)]
    with serving(backend_of(Told(found))) as client, visiting(browser, client) as visit:
        visit.page.get_by_role("textbox", name="Look for").fill("เสื้อ")
        visit.choose("cafe\u0301.png")
        expect(visit.page.get_by_role("button", name="Download café_01_เสื้อ.png")).to_be_visible()


def test_no_two_files_of_a_zip_have_one_name(browser: Browser, tmp_path: Path) -> None:
    detector = FakeDetector([Detection("01 shirt", 0.9, SHIRT.box)])
    with serving(fake_backend(detector)) as client, visiting(browser, client) as visit:
        expect(visit.state).to_contain_text("Ready")
        visit.page.get_by_role("textbox", name="Look for").fill("01 shirt, shirt")
        visit.choose("a.png")
        expect(visit.row("a.png")).to_contain_text("1 garment")
        detector.found = [Detection("shirt", 0.9, SHIRT.box)]
        visit.choose("A_01.png", photo(50, 40))
        expect(visit.row("A_01.png")).to_contain_text("1 garment")
        with visit.page.expect_download() as download:
            visit.page.get_by_role("button", name="Download zip").click()
        saved = unzipped(download.value, tmp_path)
    names = ["a_01_01_shirt.png", "A_01-2_01_shirt.png"]
    assert list(saved) == ["manifest.json", *names]
    listed = json.loads(saved["manifest.json"])["photos"]
    assert [garment["file"] for each in listed for garment in each["garments"]] == names


def test_names_that_two_stems_share_are_told_apart(visit: Visit) -> None:
    names = visit.page.evaluate(
        """async () => {
            const {fileNames} = await import("/page/crops.js");
            const taken = new Set();
            const of = (name, ...labels) => fileNames(name, labels, "png", taken);
            return [of("a.png", "01 shirt"), of("A_01.png", "shirt"), of("a_01.png", "shirt", "hat"), of("a.jpg", "x")];
        }"""
    )
    assert names == [
        ["a_01_01_shirt.png"],
        ["A_01-2_01_shirt.png"],
        ["a_01-3_01_shirt.png", "a_01-3_02_hat.png"],
        ["a-2_01_x.png"],
    ]


@pytest.mark.parametrize(
    ("box", "padding", "aspect", "crop"),
    [
        ([10, 5, 10, 5], 0, "1:1", [10, 5, 11, 6]),
        ([10, 5, 10, 5], 1, "4:5", [9, 3, 12, 8]),
        ([10, 5, 10, 5], 0, "original", [10, 5, 11, 6]),
        ([10, 5, 10, 25], 0, "1:1", [0, 5, 21, 25]),
        ([10, 5, 30, 5], 0, "1:1", [10, -5, 30, 16]),
        ([10, 5, 10.25, 25], 0.5, "original", [0, 0, 21, 35]),
        ([60, 40, 60, 40], 0, "original", [59, 39, 60, 40]),
    ],
)
def test_a_flat_box_is_a_pixel_wide_and_high(
    visit: Visit, box: list[float], padding: float, aspect: str, crop: list[int]
) -> None:
    assert of_crops(visit, "cropBox", box, {"padding": padding, "aspect": aspect}, 60, 40) == crop
