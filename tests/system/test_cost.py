"""The figures of docs/cost.md and of the example's README are those of benchmarks/cost.py."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cost

HERE = Path(__file__).resolve().parents[2]
PAGE = (HERE / "docs" / "cost.md").read_text()
README = (HERE / "examples" / "fashion_crop" / "README.md").read_text()
APP, VISIT, GPU = cost.App(), cost.Visit(), "L4"


def test_the_table_of_photos() -> None:
    assert cost.photos_table(APP) in PAGE


@pytest.mark.parametrize("table", [cost.monthly_table, cost.visits_table, cost.break_even_table])
def test_the_tables_of_the_page(table: object) -> None:
    assert callable(table)
    assert table(APP, VISIT, GPU) in PAGE


def test_the_sentences_of_the_page() -> None:
    """Every amount in it is a price that is stated, or one that follows."""
    prices = {cost.CORE, cost.MEMORY, cost.GPUS[GPU]}
    told = {f"${each:.8f}".rstrip("0") for each in prices} | {f"${cost.STORAGE}", "$30"}
    told |= {f"${cost.price_per_second(APP):.8f}", f"${cost.price_per_second(APP, GPU):.8f}"}
    told |= {cost.dollars(cost.useless_pings(APP, VISIT)), cost.dollars(cost.weights_gib() * cost.STORAGE), "$0"}
    told |= {cost.dollars(each(APP, gpu)) for gpu in (None, GPU) for each in (cost.always_awake,)}
    told |= {cost.dollars(cost.working_hours(APP, VISIT))}
    claims = {"$20", "$0.20"}  # what is often said of it
    prose = [line for line in PAGE.splitlines() if not re.match(r"\| (\d|\*\*|a month|the weights|the same)", line)]
    assert set(re.findall(r"\$[\d.,]*\d", "\n".join(prose))) == told | claims
    assert f"{cost.price_per_second(APP, GPU) / cost.price_per_second(APP):.1f} times as much" in PAGE
    assert f"{APP.memory * cost.MEMORY / cost.price_per_second(APP):.0%} of the price" in PAGE
    assert f"would be {VISIT.photo + APP.idle:.0f} s instead of {VISIT.awake(APP.idle):.0f}" in PAGE


def test_the_readme() -> None:
    section = README.split("## What it costs")[1].split("\n## ")[0]
    lonely = [cost.dollars(cost.sleeping(APP, VISIT, 1, gpu)) for gpu in (None, GPU)]
    awake = [cost.dollars(cost.always_awake(APP, gpu)) for gpu in (None, GPU)]
    hours = [cost.dollars(cost.working_hours(APP, VISIT, gpu)) for gpu in (None, GPU)]
    second = cost.price_per_second(APP)
    photos = [f"${1000 * second * (cost.DETECTION + each):.2f}" for each in cost.SEGMENTATION.values()]
    assert re.findall(r"\$[\d.,]*\d", section) == [
        *(each[0] for each in (lonely, awake, hours)),
        *photos,
        *(each[1] for each in (lonely, awake, hours)),
    ]
    assert [f"| {each:.1f} s |" in section for each in cost.SEGMENTATION.values()] == [True] * 4


def test_the_picture() -> None:
    picture = (HERE / "docs" / "cost.svg").read_text()
    texts = set(re.findall(r">([^<>]+)</text>", picture))
    for gpu in (None, GPU):
        assert f"B always awake: {cost.dollars(cost.always_awake(APP, gpu))}" in texts
        assert f"C working hours: {cost.dollars(cost.working_hours(APP, VISIT, gpu))}" in texts
    for price in (cost.always_awake(APP), cost.working_hours(APP, VISIT)):
        assert f"{cost.break_even(APP, VISIT, price):,.0f} a day" in texts


def test_with_other_seconds() -> None:
    command = [sys.executable, cost.__file__, "--start", "0", "--photo", "0", "--gpu", "H100"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (
        f"| **B**: one container always awake | $160 | {cost.dollars(cost.always_awake(APP, 'H100'))} |" in done.stdout
    )
    assert f"| 10 | {cost.dollars(10 * 30 * 60 * cost.price_per_second(APP))} |" in done.stdout


def test_by_another_way() -> None:
    """Cross sums that do not go through the functions under test."""
    month = 30 * 24 * 3600
    assert cost.always_awake(APP) == pytest.approx(2 * 0.0000131 * month + 16 * 0.00000222 * month)
    assert cost.always_awake(APP, "L4") - cost.always_awake(APP) == pytest.approx(0.000222 * month)
    assert cost.sleeping(APP, VISIT, 10) == pytest.approx(10 * 30 * 83 * 0.00006172)
    assert cost.sleeping(APP, VISIT, 10_000) == cost.always_awake(APP)  # it cannot be more than always awake
    assert cost.sleeping(APP, VISIT, cost.break_even(APP, VISIT, 48.0)) == pytest.approx(48.0)
    assert cost.working_hours(APP, VISIT) == pytest.approx(30 * 5 / 7 * 36_605 * 0.00006172)
    assert cost.weights_gib() * 2**30 == 693_997_677 + 897_952_466 + 570 + 48 + 466_062 + 231_508
    assert cost.weights_gib("tiny") * 2**30 == 693_997_677 + 155_906_050 + 570 + 48 + 466_062 + 231_508


def test_the_seconds_of_photos_come_from_a_file(tmp_path: Path) -> None:
    told = {f"segmentation, {each}": [{"wall": 3.0}] for each in cost.SEGMENTATION}
    told["detection"] = [{"wall": 9.0}, {"wall": 4.0}, {"wall": 5.0}]
    (tmp_path / "photos.json").write_text(json.dumps(told))
    assert cost.photo_seconds(tmp_path / "photos.json") == (5.0, dict.fromkeys(cost.SEGMENTATION, 3.0))
    assert "| `tiny` | 5.0 | 3.0 |" in cost.photos_table(APP, *cost.photo_seconds(tmp_path / "photos.json"))


def test_a_photo_by_another_way() -> None:
    [tiny] = [line for line in cost.photos_table(APP).splitlines() if line.startswith("| `tiny`")]
    seconds = cost.DETECTION + cost.SEGMENTATION["tiny"]
    assert tiny.endswith(f" **{100 * seconds * 0.00006172:.3f}** |")
