"""Calculate the cost of examples/fashion_crop on Modal from the stated prices and seconds.

    python benchmarks/cost.py [--start 5] [--photo 18] [--gpu L4] [--photos FILE.json] [--picture FILE.svg]

It prints the tables of docs/cost.md. The picture needs matplotlib (``pip install -e '.[bench]'``).
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from weightcache import Manifest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MANIFEST = Path(__file__).parent.parent / "examples" / "fashion_crop" / "weights.toml"

# US dollars, as of 2026-06-27 to 2026-07-01; docs/cost.md says where they are from.
CORE = 0.0000131  # a physical core and second
MEMORY = 0.00000222  # a GiB and second
GPUS = {
    "T4": 0.000164,
    "L4": 0.000222,
    "A10": 0.000306,
    "L40S": 0.000542,
    "A100-40GB": 0.000583,
    "A100-80GB": 0.000694,
    "H100": 0.001097,
    "H200": 0.001261,
    "B200": 0.001736,
}
STORAGE = 0.09  # a GiB and month, beyond the first TiB
LEAST_CORES = 0.125  # that a container is charged for

# Seconds of two cores for one photo: of detection, and of segmentation with each segmenter; docs/benchmarks.md says on
# which machine `make photos` measured them. `--photos` takes the figures of another run.
DETECTION = 8.1
SEGMENTATION = {"large": 9.4, "base-plus": 4.1, "small": 2.4, "tiny": 2.1}

DAYS = 30  # of a month
DAY = 86_400  # seconds
VISITS = (1, 10, 100, 300, 1000)


@dataclass(frozen=True)
class App:
    """What examples/fashion_crop/app.py asks for."""

    cores: float = 2
    memory: float = 16  # GiB
    idle: int = 60  # seconds until a container of options A and D sleeps
    idle_pinged: int = 900  # the same, of option C
    ping_every: int = 300  # seconds, in option C
    ping_hours: int = 10  # on five days of seven


@dataclass(frozen=True)
class Visit:
    """An isolated visit: the app has stopped, and a container must start."""

    start: float = 5  # seconds from the request to loaded models
    photo: float = 18  # seconds of work

    def awake(self, idle: float) -> float:
        """Return the seconds of a container that are charged."""
        return self.start + self.photo + idle


def price_per_second(app: App, gpu: str | None = None) -> float:
    """Return the price of a container per second, busy or idle."""
    return app.cores * CORE + app.memory * MEMORY + (GPUS[gpu] if gpu else 0)


def always_awake(app: App, gpu: str | None = None) -> float:
    """Return the cost of option B a month; also of pings that keep it running day and night."""
    return DAYS * DAY * price_per_second(app, gpu)


def sleeping(app: App, visit: Visit, visits: float, gpu: str | None = None) -> float:
    """Return the cost of option A a month for a number of isolated visits a day."""
    return min(DAYS * visits * visit.awake(app.idle) * price_per_second(app, gpu), always_awake(app, gpu))


def working_hours(app: App, visit: Visit, gpu: str | None = None) -> float:
    """Return the cost of option C a month without visits at other hours."""
    awake = visit.start + app.ping_hours * 3600 - app.ping_every + app.idle_pinged
    return DAYS * 5 / 7 * awake * price_per_second(app, gpu)


def pings(app: App) -> float:
    """Return what the pings of option C cost themselves a month: three seconds each of the least container."""
    return DAYS * 5 / 7 * app.ping_hours * 3600 / app.ping_every * 3 * (LEAST_CORES * CORE + 0.125 * MEMORY)


def useless_pings(app: App, visit: Visit, every: int = 600) -> float:
    """Return the cost a month of pings that come after the container has stopped."""
    return DAYS * DAY / every * (visit.start + app.idle) * price_per_second(app)


def break_even(app: App, visit: Visit, price: float, gpu: str | None = None) -> float:
    """Return the isolated visits a day at which option A costs ``price`` a month."""
    return price / (DAYS * visit.awake(app.idle) * price_per_second(app, gpu))


def weights_gib(segmenter: str = "large") -> float:
    """Return the size of the weights on the Volume with a segmenter: a deployment loads one of the four."""
    loaded = Manifest.load(MANIFEST).select(["groundingdino", "bert-base-uncased", f"sam2-{segmenter}"])
    return sum(file.size or 0 for checkpoint in loaded for file in checkpoint.files) / 2**30


def dollars(amount: float) -> str:
    """Format an amount; cents only below 20 dollars."""
    return f"${amount:,.0f}" if amount >= 20 else f"${amount:.2f}"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table in Markdown, numbers to the right."""
    head = list(head)
    lines = ["| " + " | ".join(each) + " |" for each in (head, *rows)]
    return "\n".join([lines[0], "|---" + "|--:" * (len(head) - 1) + "|", *lines[1:]])


def monthly_table(app: App, visit: Visit, gpu: str) -> str:
    """Return the table of costs without visits."""
    size = weights_gib()
    return table(
        ["a month of 30 days", "two cores", f"and an {gpu}"],
        [
            [f"the weights on the Volume ({size:.2f} GiB), within the free TiB", "$0", "$0"],
            ["the same, beyond it", dollars(size * STORAGE), dollars(size * STORAGE)],
            ["**A, D**: asleep, if nobody comes", "$0", "$0"],
            ["**B**: one container always awake", dollars(always_awake(app)), dollars(always_awake(app, gpu))],
            [
                f"**C**: awake {app.ping_hours} hours on five days of seven",
                dollars(working_hours(app, visit)),
                dollars(working_hours(app, visit, gpu)),
            ],
            ["**C**: its pings themselves", dollars(pings(app)), dollars(pings(app))],
        ],
    )


def visits_table(app: App, visit: Visit, gpu: str) -> str:
    """Return the table of costs by visits."""
    rows = []
    for visits in VISITS:
        cost = sleeping(app, visit, visits)
        avoided = (always_awake(app) - cost) / (DAYS * visits)
        rows.append(
            [
                f"{visits:,}",
                dollars(cost),
                dollars(sleeping(app, visit, visits, gpu)),
                f"${avoided:.3f}" if avoided >= 0.0005 else "under $0.001" if avoided else "none",
            ]
        )
    return table(["lonely visits a day", "**A**, two cores", f"**A**, and an {gpu}", "**B** pays for each wait"], rows)


def break_even_table(app: App, visit: Visit, gpu: str) -> str:
    """Return the table of visits at which A costs as much as the other options."""
    return table(
        ["A costs as much as", "lonely visits a day"],
        [
            [
                "the $30 a month that are free",
                f"{break_even(app, visit, 30):,.0f}; {break_even(app, visit, 30, gpu):,.0f} with an {gpu}",
            ],
            ["C", f"{break_even(app, visit, working_hours(app, visit)):,.0f}"],
            ["B", f"{break_even(app, visit, always_awake(app)):,.0f}"],
        ],
    )


def photo_seconds(measured: Path) -> tuple[float, dict[str, float]]:
    """Return median seconds of detection, and of segmentation with each segmenter, as `make photos` wrote them."""
    told = json.loads(measured.read_text(encoding="utf-8"))
    median = {name: statistics.median(each["wall"] for each in rounds) for name, rounds in told.items()}
    return median["detection"], {each: median[f"segmentation, {each}"] for each in SEGMENTATION}


def photos_table(app: App, detection: float = DETECTION, segmentation: Mapping[str, float] = SEGMENTATION) -> str:
    """Return the table of what a photo costs with each segmenter."""

    def cents(seconds: float) -> str:
        return f"{100 * seconds * price_per_second(app):.3f}"

    head = ("`FASHION_SEGMENTER`", "detection, s", "segmentation, s", "detection, ¢", "segmentation, ¢", "a photo, ¢")
    rows = []
    for segmenter, seconds in segmentation.items():
        parts = (detection, seconds)
        total = f"**{cents(sum(parts))}**"
        rows.append([f"`{segmenter}`", *(f"{each:.1f}" for each in parts), *map(cents, parts), total])
    return table(head, rows)


def picture(path: Path, app: App, visit: Visit, gpu: str) -> None:
    """Draw the cost of A over visits, and where it meets B and C, without a GPU and with one."""
    from picture_style import INK, OURS, SOFT, figure, save

    days = [1, 2, 5, 10, 20, 50, 100, 200, 300, 500, break_even(app, visit, always_awake(app)), 5000]
    told = []
    with figure(6.2, rows=2) as (drawn, panes):
        for axes, kind in zip(panes, (None, gpu), strict=True):
            title = f"{app.cores:.0f} cores, {app.memory:.0f} GiB" + (f", {kind}" if kind else "")
            axes.plot(days, [sleeping(app, visit, each, kind) for each in days], color=OURS, linewidth=2.5)
            levels = (
                (always_awake(app, kind), "--", "B always awake"),
                (working_hours(app, visit, kind), ":", "C working hours"),
            )
            for price, dash, name in levels:
                meets = break_even(app, visit, price, kind)
                told.append(f"{title}, {name}: {dollars(price)} a month, as much as A with {meets:,.0f} visits a day")
                axes.axhline(price, color=SOFT, linestyle=dash, linewidth=1.4)
                axes.text(1.1, price * 1.15, f"{name}: {dollars(price)}", color=SOFT)
                axes.plot([meets], [price], "o", color=INK, markersize=5)
                where = {"textcoords": "offset points", "ha": "left", "va": "top"}
                axes.annotate(f"{meets:,.0f} a day", (meets, price), (6, -4), color=INK, **where)
            name = "A sleeps, and starts\nfrom the Volume"
            axes.text(12, sleeping(app, visit, 12, kind) * 0.7, name, color=OURS, fontweight="bold", va="top")
            axes.set(xscale="log", yscale="log", xlim=(1, 5000), ylim=(0.1, 2500))
            axes.set_title(title, fontweight="bold")
            axes.set_ylabel("US dollars a month")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.minorticks_off()
        panes[-1].set_xlabel("lonely visits a day")
        save(drawn, path, title="The cost of option A over visits a day", description=f"{'; '.join(told)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description="What the example costs on Modal.")
    visit = Visit()
    parser.add_argument("--start", type=float, default=visit.start, help="seconds of a cold start (%(default)s)")
    parser.add_argument("--photo", type=float, default=visit.photo, help="seconds of work for a photo (%(default)s)")
    parser.add_argument("--gpu", default="L4", choices=GPUS, help="for the second column (%(default)s)")
    parser.add_argument("--photos", type=Path, metavar="FILE", help="the seconds that `make photos` wrote there")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="also draw it as SVG")
    options = parser.parse_args()
    app, visit = App(), Visit(options.start, options.photo)
    print(f"a second: ${price_per_second(app):.8f}, with {options.gpu} ${price_per_second(app, options.gpu):.8f}")
    print(f"pings every 10 minutes, day and night, that let it sleep: {dollars(useless_pings(app, visit))} a month\n")
    print("\n\n".join(each(app, visit, options.gpu) for each in (monthly_table, visits_table, break_even_table)))
    print(f"\n{photos_table(app, *photo_seconds(options.photos)) if options.photos else photos_table(app)}")
    if options.picture:
        picture(options.picture, app, visit, options.gpu)


if __name__ == "__main__":
    main()
