"""What `scenarios` measured, as pictures that read without colour: parts differ by pattern, and are named."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.fonttype"] = "none"  # text stays text
mpl.rcParams["svg.hashsalt"] = "fashion-crop"  # the same bytes of the same figures
mpl.rcParams["hatch.linewidth"] = 0.7
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import Patch  # noqa: E402

from .scenarios import SCENARIOS, typical  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

    Result = dict[str, Any]

LOOKS = {  # of each part of a bar: what it is, its grey and its pattern
    "download": ("download", "white", "xxxx"),
    "imports": ("Python and imports", "#d4d4d4", ""),
    "build": ("build the models", "white", "////"),
    "load": ("load the weights", "#707070", ""),
    "photo": ("one photo", "white", "||"),
}
NARROW = 0.035  # of the axis: a part that is narrower has no number within


def draw(result: Result, folder: Path) -> None:
    """Write ``cold-start.svg`` and ``before-after.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in (("cold-start", cold_starts), ("before-after", before_and_after)):
        figure = picture(result)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def cold_starts(result: Result) -> Any:
    """Draw the phases of each start as a bar."""
    names = [name for name in SCENARIOS if name in result["runs"]]
    rows = [(SCENARIOS[name].title, _parts(result["runs"][name])) for name in names]
    figure, axes = plt.subplots(figsize=(9, 0.5 * len(rows) + 1.7), layout="constrained")
    _bars(axes, rows, [f"{sum(parts.values()):.1f} s" for _, parts in rows])
    _dress(figure, "From nothing to two models in memory", [part for part in LOOKS if part != "photo"], result)
    return figure


def before_and_after(result: Result) -> Any:
    """Draw what the first, the next and a later visitor wait for, before and after."""
    runs = result["runs"]
    stories = [
        ("before: weights in the image", "usual, image", True),
        ("before: on a Volume, loaded as usual", "usual, volume", True),
        ("after, option A: on a Volume", "ours, volume", True),
        ("after, option B: one container warm", "ours, volume", False),
    ]
    rows: list[tuple[str, Mapping[str, float]]] = []
    for title, name, sleeps in stories:
        first, again = result["photos"]["ours" if SCENARIOS[name].ours else "usual"]
        if sleeps and name not in runs:  # where no slow volume could be mounted
            continue
        cold = {**_parts(runs[name]), "photo": first} if sleeps else {"photo": again}
        rows += [(f"{title}\nfirst visitor", cold), ("next one", {"photo": again}), ("10 minutes later", cold)]
    figure, axes = plt.subplots(figsize=(9, 0.45 * len(rows) + 1.8), layout="constrained")
    _bars(axes, rows, [f"{sum(parts.values()):.0f} s" for _, parts in rows], gap=3)
    _dress(figure, "What a visitor waits for", [part for part in LOOKS if part != "download"], result)
    return figure


def _parts(runs: list[Result]) -> Mapping[str, float]:
    phases = dict(typical(runs))
    return {"download": phases["download"], "imports": phases["python"] + phases["imports"]} | {
        name: phases[name] for name in ("build", "load")
    }


def _bars(axes: Axes, rows: list[tuple[str, Mapping[str, float]]], sums: list[str], gap: int = 0) -> None:
    """Draw a row of parts for each title; with a ``gap``, some room after so many rows."""
    places = [-number - (0.6 * (number // gap) if gap else 0) for number in range(len(rows))]
    most = max(sum(parts.values()) for _, parts in rows)
    for place, (_, parts), told in zip(places, rows, sums, strict=True):
        left = 0.0
        for name, seconds in parts.items():
            _, grey, pattern = LOOKS[name]
            axes.barh(place, seconds, 0.72, left, color=grey, hatch=pattern, edgecolor="black", linewidth=0.7)
            if seconds > NARROW * most:
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
                x = left + seconds / 2
                axes.text(x, place, f"{seconds:.1f}", va="center", ha="center", fontsize=8, bbox=box)
            left += seconds
        axes.text(left + 0.01 * most, place, told, va="center", fontsize=9, fontweight="bold")
    axes.set_yticks(places, [title for title, _ in rows], fontsize=9)
    axes.set(xlim=(0, 1.1 * most), xlabel="seconds")
    axes.tick_params(left=False)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _dress(figure: Any, title: str, parts: list[str], result: Result) -> None:
    """Give a picture its title, its legend, and what its figures rest on."""
    figure.suptitle(title, fontsize=11)
    handles = [
        Patch(facecolor=grey, hatch=pattern, edgecolor="black", linewidth=0.7, label=name)
        for name, grey, pattern in (LOOKS[part] for part in parts)
    ]
    counted = f"Starts: the one in the middle of {result['rounds']}, and of the usual download one"
    if "photo" in parts:
        counted = f"Starts: the one in the middle of {result['rounds']}; photos: one of each way"
    told = textwrap.fill(f"{counted}. {result['parameters']}.", 120)
    legend = {"loc": "outside lower center", "frameon": False, "fontsize": 9}
    figure.legend(handles=handles, ncols=len(handles), title=told, title_fontsize=8, **legend)
