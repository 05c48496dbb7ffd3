"""Draw what `scenarios` measured: the headline, the phases of each start, and what a visitor waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from picture_style import Bar, bars, figure, legend, save

from .scenarios import SCENARIOS, typical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Result = dict[str, Any]

HEADLINE = {  # the starts that it compares, by what it calls them
    "usual, image": "Weights in the image",
    "usual, volume": "On a Volume, as usual",
    "ours, volume": "weightcache, on a Volume",
}
WARM = "weightcache, container kept warm"
STORIES = (  # title, start, whether the container sleeps between visitors
    ("Before: weights in the image", "usual, image", True),
    ("Before: on a Volume, as usual", "usual, volume", True),
    ("After, option A: on a Volume", "ours, volume", True),
    ("After, option B: one container warm", "ours, volume", False),
)


def draw(result: Result, folder: Path) -> None:
    """Write ``headline.svg``, ``cold-start.svg`` and ``before-after.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Result, Path], None]] = {
        "headline": headline,
        "cold-start": cold_starts,
        "before-after": before_and_after,
    }
    for name, picture in pictures.items():
        picture(result, folder / f"{name}.svg")


def headline(result: Result, path: Path) -> None:
    """Draw four bars: the seconds until both models are ready."""
    rows = []
    for name, title in HEADLINE.items():
        if name in result["runs"]:  # a slow volume cannot be mounted everywhere
            seconds = sum(typical(result["runs"][name]).values())
            rows.append(Bar(title, {"": seconds}, SCENARIOS[name].ours, f"{seconds:.1f} s"))
    rows.append(Bar(WARM, {"": 0.0}, ours=True, total="0 s"))
    title = "Seconds until both models are ready"
    told = "; ".join(f"{row.title}: {row.total}" for row in rows)
    with figure(0.52 * len(rows) + 0.85) as (drawn, axes):
        bars(axes, rows)
        axes.set_title(title, fontsize=12.5, fontweight="bold")
        save(drawn, path, title=title, description=f"{told}. {result['parameters']}.")


def cold_starts(result: Result, path: Path) -> None:
    """Draw the phases of each start as a bar."""
    rows = [
        Bar(SCENARIOS[name].title, _parts(runs), SCENARIOS[name].ours, f"{sum(_parts(runs).values()):.1f} s")
        for name, runs in result["runs"].items()
    ]
    _phases(rows, path, "From nothing to two models in memory", result)


def before_and_after(result: Result, path: Path) -> None:
    """Draw what the first, the next and a later visitor wait for, before and after."""
    rows = []
    for title, name, sleeps in STORIES:
        if sleeps and name not in result["runs"]:
            continue
        ours = SCENARIOS[name].ours
        first, again = result["photos"]["ours" if ours else "usual"]
        warm = {**dict.fromkeys(("imports", "build", "load"), 0.0), "photo": again}
        cold = {**_start(result["runs"][name]), "photo": first} if sleeps else warm
        for visitor, parts in ((f"{title}. First visitor", cold), ("Next one", warm), ("10 minutes later", cold)):
            rows.append(Bar(visitor, parts, ours, f"{sum(parts.values()):.0f} s"))
    _phases(rows, path, "What a visitor waits for", result, groups=3)


def _phases(rows: list[Bar], path: Path, title: str, result: Result, *, groups: int = 0) -> None:
    names = {
        "download": "download",
        "imports": "Python and imports",
        "build": "build the models",
        "load": "load the weights",
        "photo": "one photo",
    }
    told = "; ".join(
        f"{row.title}: {row.total}, of which "
        + ", ".join(f"{names[part]} {seconds:.1f}" for part, seconds in row.parts.items() if seconds)
        for row in rows
    )
    with figure(0.5 * len(rows) + 1.5) as (drawn, axes):
        bars(axes, rows, groups=groups)
        axes.set_title(title, fontsize=12.5, fontweight="bold")
        legend(axes, [names[part] for part in rows[0].parts])
        save(drawn, path, title=title, description=f"{told}. {result['parameters']}.")


def _start(runs: list[Result]) -> Mapping[str, float]:
    """Return the parts of a start that finds its weights."""
    phases = typical(runs)
    imports = phases["python"] + phases["download"] + phases["imports"]  # nothing is downloaded: one small file is read
    return {"imports": imports, "build": phases["build"], "load": phases["load"]}


def _parts(runs: list[Result]) -> Mapping[str, float]:
    phases = typical(runs)
    return {"download": phases["download"], "imports": phases["python"] + phases["imports"]} | {
        name: phases[name] for name in ("build", "load")
    }
