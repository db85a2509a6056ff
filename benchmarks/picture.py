"""Pictures of the live page, of a real daemon that forecasts real data.

    python -m benchmarks.picture FOLDER [--model FILE] [--ticks 120] [--views VIEW,...]

Fits a model to the bundled electricity demand and sea temperature, both half-hourly, but for their
latest fifth, sends that to a daemon, and has a headless Chromium look on: light and dark, wide and
narrow. With ``--model`` the fit is kept there, or taken from there.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from streamlstm.client import Feed
from streamlstm.datasets.bundled import load
from streamlstm.datasets.frames import heads
from streamlstm.model_file import save_model
from streamlstm.train import FitOptions, fit
from tests.browser import Page, browsing
from tests.daemon import Daemon, start

SERIES = ("electricity", "sea")
UNSEEN = 0.2
PAUSE = 0.06
"""Seconds from a tick of each series to the next; the page is made to look after each."""


class View(NamedTuple):
    """How a picture is taken."""

    width: int
    height: int
    scheme: str
    phone: bool = False
    scale: float = 2


VIEWS = {
    "desktop-light": View(1440, 900, "light"),
    "desktop-dark": View(1440, 900, "dark"),
    "tablet-light": View(900, 1200, "light"),
    "phone-light": View(390, 844, "light", True),
    "phone-dark": View(390, 844, "dark", True),
}


def fitted(path: Path) -> None:
    """Fit the model, unless it is there."""
    if path.exists():
        return
    tables = [load(name).series[0] for name in SERIES]
    known = heads(tables, [round((1 - UNSEEN) * len(each.ts)) for each in tables])
    model, _ = fit(known, FitOptions(horizon=48, season=336), name="electricity, sea")
    save_model(model, path)


def play(daemon: Daemon, page: Page, ticks: int) -> None:
    """Send what was known in silence, then ``ticks`` that were not, as the page looks on."""
    feed = Feed(daemon.input, "json")
    feed.wait(30)
    tables = [load(name).series[0] for name in SERIES]
    begins = [round((1 - UNSEEN) * len(each.ts)) for each in tables]
    for name, each, begin in zip(SERIES, tables, begins, strict=True):
        for row in range(begin):
            feed.send(name, int(each.ts[row]), each.values[row].tolist(), warm=True)
    page.go(f"{daemon.url}/live#{'&'.join(map(quote, SERIES))}")
    page.until("about && active === 2")
    for k in range(ticks):
        for name, each, begin in zip(SERIES, tables, begins, strict=True):
            feed.send(name, int(each.ts[begin + k]), each.values[begin + k].tolist())
        time.sleep(PAUSE)
        page.js("ask()")
    feed.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--ticks", type=int, default=120)
    parser.add_argument("--views", default=",".join(VIEWS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or Path(folder) / "model.safetensors"
        fitted(model)
        given = {"metrics.page": True, "interval.coverage": "0.9,0.5"}
        with start(Path(folder), model, **given) as daemon, browsing() as page:
            page.resize(1440, 900)
            play(daemon, page, options.ticks)
            for name in options.views.split(","):
                view = VIEWS[name]
                page.resize(view.width, view.height, phone=view.phone, scale=view.scale)
                page.prefer(prefers_color_scheme=view.scheme)
                page.js("ask()")
                page.js("new Promise((done) => setTimeout(done, 400))")
                path = options.folder / f"{name}.png"
                page.picture(path)
                print(path)
            for problem in page.problems:
                print(f"problem: {problem}")


if __name__ == "__main__":
    main()
