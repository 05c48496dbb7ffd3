"""The look of the pictures in docs: colour for weightcache, grey for the rest, light and dark, read by screen readers.

A picture is drawn by matplotlib with the colours of the light page. `save` turns them into variables of the SVG, which
have other values where the reader prefers a dark page. The background is transparent.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {  # on a light and on a dark page
    "ink": ("#1d1c1b", "#efede9"),
    "soft": ("#5c5953", "#aeaaa2"),
    "line": ("#dfdcd6", "#35332e"),
    "usual-1": ("#e3e1dd", "#4b4945"),
    "usual-2": ("#c9c6c0", "#66635e"),
    "usual-3": ("#aaa7a1", "#827f79"),
    "usual-4": ("#8a8781", "#a09d97"),
    "ours-1": ("#c3e2dd", "#1f4f48"),
    "ours-2": ("#84c2b9", "#2f7d72"),
    "ours-3": ("#3f978b", "#47aa9c"),
    "ours-4": ("#0b6b63", "#5fd0c1"),
}
INK, SOFT, LINE, OURS = (COLOURS[name][0] for name in ("ink", "soft", "line", "ours-4"))
WIDTH = 5.0  # inches: 360 points, so that a point is a pixel where a phone shows the picture

_SETTINGS = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "weightcache",  # the same bytes of the same figures
    "font.family": "sans-serif",
    "font.size": 11.1,  # 11 pixels where the picture is 358 wide
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.titlelocation": "left",
    "xtick.color": SOFT,
    "ytick.color": INK,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
}


class Bar(NamedTuple):
    """One bar: its title, its parts by name, whether it is weightcache's, and what is written at its end."""

    title: str
    parts: Mapping[str, float]
    ours: bool
    total: str


@contextmanager
def figure(height: float, *, rows: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure and its axes in this style; ``height`` in inches."""
    with mpl.rc_context(_SETTINGS):
        drawn, axes = plt.subplots(rows, figsize=(WIDTH, height), layout="constrained", sharex=rows > 1)
        try:
            yield drawn, axes
        finally:
            plt.close(drawn)


def bars(axes: Axes, rows: Sequence[Bar], *, groups: int = 0) -> None:
    """Draw each bar below its title, its parts in shades from light to dark.

    Args:
        axes: Where.
        rows: From the top.
        groups: After how many bars some room is left; 0 for never.
    """
    most = max(sum(row.parts.values()) for row in rows)
    for number, row in enumerate(rows):
        place = -number - (0.5 * (number // groups) if groups else 0)
        left = 0.0
        for part, seconds in enumerate(row.parts.values()):
            colour = COLOURS[f"{'ours' if row.ours else 'usual'}-{_shade(part, len(row.parts))}"][0]
            axes.barh(place, seconds, 0.42, left, color=colour, linewidth=0)
            left += seconds
        style = {"fontweight": "bold", "color": OURS} if row.ours else {"color": INK}
        axes.text(0, place + 0.27, row.title, va="bottom", ha="left", **style)
        axes.text(left + 0.012 * most, place, row.total, va="center", ha="left", **{**style, "fontweight": "bold"})
    axes.set(xlim=(0, 1.16 * most), ylim=(place - 0.4, 0.75), xlabel="seconds", yticks=[])
    axes.spines["left"].set_visible(False)


def legend(axes: Axes, names: Sequence[str]) -> None:
    """Name the parts of the bars, in grey, below the axis."""
    handles = [
        mpl.patches.Patch(facecolor=COLOURS[f"usual-{_shade(part, len(names))}"][0], linewidth=0, label=name)
        for part, name in enumerate(names)
    ]
    where = {"loc": "outside lower left", "ncols": 2, "frameon": False, "handlelength": 1.0, "labelcolor": SOFT}
    axes.get_figure().legend(handles=handles, **where)


def _shade(part: int, parts: int) -> int:
    """Return 1 to 4, from light to dark; the last part has the darkest one."""
    return 4 * (part + 1) // parts


def save(drawn: Figure, path: Path, *, title: str, description: str) -> None:
    """Write a picture, with a title and a description for screen readers."""
    drawn.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    text = path.read_text(encoding="utf-8")
    for name, (light, _) in COLOURS.items():
        text = text.replace(light, f"var(--{name})")
    if fixed := set(re.findall(r"#[0-9a-f]{6}\b", text)):
        raise ValueError(f"{path.name} has colours that do not change on a dark page: {sorted(fixed)}")
    light, dark = (
        " ".join(f"--{name}: {both[index]};" for name, both in COLOURS.items() if f"var(--{name})" in text)
        for index in (0, 1)
    )
    head = (
        f'<title id="title">{escape(title)}</title>\n<desc id="desc">{escape(description)}</desc>\n'
        f"<style>svg {{ {light} }}\n@media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>\n"
    )
    text = re.sub(r"<svg ", '<svg role="img" aria-labelledby="title desc" ', text, count=1)
    text = re.sub(r"(<svg [^>]*>\n)", lambda found: found[0] + head, text, count=1)
    path.write_text(text, encoding="utf-8")
