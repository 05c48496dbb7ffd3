"""The scenarios: both ways start for real, at test size, and find the same; what is wrong is reported as no result."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fashion_crop.benchmarks import scenarios
from fashion_crop.benchmarks.scenarios import PHASES, SCENARIOS, TOLERANCES, Bench, measure, report

if TYPE_CHECKING:
    from conftest import StandIns

STARTS = {"python": 0.5, "download": 1.0, "imports": 4.0, "build": 2.0, "load": 3.0}  # seconds


@pytest.fixture
def bench(stand_ins: StandIns, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(scenarios, "stand_ins_in", lambda cache, size: stand_ins.manifest.parent)
    return Bench("stand-in", tmp_path, volume=False)


def test_both_ways_download_load_and_find_the_same(bench: Bench) -> None:
    with bench:
        extra = {"photo": str(bench.photo()), "answer": bench.answer()}
        usual = bench.start(SCENARIOS["usual, empty"], **extra)
        ours = bench.start(SCENARIOS["ours, empty"], **extra)
        assert "0.04 GB" in bench.parameters()
    assert usual["sum"] == ours["sum"] != 0
    for told in (usual, ours):
        assert tuple(told["phases"]) == PHASES
        assert min(told["phases"].values()) > 0
        assert len(told["photos"]) == 2
    assert "differences" not in usual
    assert all(ours["differences"][name] <= most for name, most in TOLERANCES.items())
    assert 0 < ours["differences"]["of the mask"] < 1


class FakeBench:
    """Records what it is given, and which starts were made."""

    mounted: Path | None = Path("/volume")

    def __init__(self, **different: Any) -> None:
        self.made: list[str] = []
        self._different = different

    def photo(self) -> Path:
        return Path("/photo")

    def answer(self) -> str:
        return "/answer"

    def start(self, scenario: Any, **extra: str) -> dict[str, Any]:
        name = next(name for name, each in SCENARIOS.items() if each is scenario)
        self.made.append(name)
        share = 0.25 if scenario.ours else 1.0
        told = {
            "phases": {part: share * seconds for part, seconds in STARTS.items()},
            "sum": 1.5,
            "cpu": 5,
            "peak": 2e9,
        }
        if extra:
            told |= {"photos": [3.0, 2.0], "differences": dict.fromkeys(TOLERANCES, 0.0)}
        return told | self._different.get(name, {})


def measured(**different: Any) -> dict[str, Any]:
    bench: Any = FakeBench(**different)
    return {"rounds": 2, "parameters": "2 cores; a disk", **measure(bench, 2)}


def test_turns_are_taken_and_the_first_one_is_dropped() -> None:
    bench: Any = FakeBench()
    told = measure(bench, 2)
    assert {name: len(runs) for name, runs in told["runs"].items()} == dict.fromkeys(SCENARIOS, 2) | {"usual, empty": 1}
    filled = [name for name, each in SCENARIOS.items() if not each.empty]
    again = [name for name in SCENARIOS if name != "usual, empty"]
    assert bench.made == [*filled, *SCENARIOS, *again, "usual, image", "ours, disk"]


def test_without_a_slow_volume_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeBench, "mounted", None)
    told = measured()
    assert set(told["runs"]) == {name for name, each in SCENARIOS.items() if each.place == "disk"}
    assert "ours, volume" not in report(told)


def test_other_weights_are_no_result() -> None:
    with pytest.raises(SystemExit, match="not all have loaded the same weights"):
        measured(**{"ours, volume": {"sum": 1.25}})


@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("far", [1.0, float("nan")])
def test_other_findings_are_no_result(name: str, far: float) -> None:
    differences = dict.fromkeys(TOLERANCES, 0.0) | {name: far}
    with pytest.raises(SystemExit, match=f"do not find the same: {{'{name}': {far}}}"):
        measured(**{"ours, disk": {"differences": differences}})


def test_the_report_has_every_scenario_and_the_ratios() -> None:
    told = measured()
    text = report(told)
    assert "| as usual, Volume empty (once) | 10.50 | 10.50 | 0.50 | 1.00 | 4.00 | 2.00 | 3.00 | 5.00 | 2000 |" in text
    assert "| **weightcache, Volume filled** | 2.62 |" in text
    assert "ours, disk ÷ usual, image: 0.25 of the whole, 0.250 without imports." in text


def test_a_run_in_the_middle_stands_for_all() -> None:
    runs = [{"phases": dict(STARTS, load=load)} for load in (9.0, 3.0, 4.0)]
    assert scenarios.typical(copy.deepcopy(runs))["load"] == 4.0


def test_what_was_measured_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs.json").write_text(json.dumps(measured()))
    monkeypatch.setattr(scenarios, "measure", lambda *_: 1 / 0)
    arguments = ["scenarios", "--from", str(tmp_path / "runs.json"), "--pictures", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    scenarios.main()
    assert {path.name for path in tmp_path.glob("*.svg")} == {"headline.svg", "cold-start.svg", "before-after.svg"}


@pytest.mark.parametrize("volume", [True, False])
def test_the_pictures_name_and_number_their_parts(
    volume: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fashion_crop.benchmarks.pictures import draw

    monkeypatch.setattr(FakeBench, "mounted", Path("/volume") if volume else None)
    draw(measured(), tmp_path)
    texts, told = {}, {}
    for name in ("headline", "cold-start", "before-after"):
        picture = (tmp_path / f"{name}.svg").read_text()
        texts[name] = re.findall(r">([^<>\n]+)</text>", picture)
        told[name] = re.findall(r"<desc[^>]*>([^<]+)</desc>", picture)[0]
        assert told[name].endswith("2 cores; a disk.")
    assert texts["headline"].count("10.5 s") == (2 if volume else 1)
    assert ("2.6 s" in texts["headline"]) == volume
    assert told["headline"].startswith("Weights in the image: 10.5 s; ")
    assert "weightcache, container kept warm: 0 s" in told["headline"]
    assert texts["cold-start"].count("10.5 s") == (3 if volume else 2)
    assert ("weightcache, Volume filled" in texts["cold-start"]) == volume
    assert {"download", "Python and imports", "build the models", "load the weights"} <= {*texts["cold-start"]}
    assert "as usual, weights in the image: 10.5 s, of which download 1.0, Python and imports 4.5" in told["cold-start"]
    assert texts["before-after"].count("14 s") == (4 if volume else 2)  # a start of 10.5 s and 3 for the photo
    assert ("After, option A: on a Volume. First visitor" in texts["before-after"]) == volume
    assert "After, option B: one container warm. First visitor" in texts["before-after"]
