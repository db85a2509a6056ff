"""The live page: what it is told, and what a real browser makes of it."""

import contextlib
import json
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from streamlstm import logs
from streamlstm.engine import Engine
from streamlstm.golden import make_golden
from streamlstm.live import FILES, HEADERS, MOST_FOUND, Live, Names
from streamlstm.metrics import Metrics
from streamlstm.model_file import save_model
from streamlstm.ticks import Arrivals, Keys
from streamlstm.web import Answer, Server, hash_password
from tests.browser import Page, browsing, chromium
from tests.daemon import Client, Daemon, eventually, get, start
from tests.models import HOUR, random_model, random_model_file

HORIZON, HISTORY, SEASON = 3, 8, 12
STEP = HOUR // 10**9
SHAPE: dict[str, Any] = {"season": SEASON, "base": "seasonal", "horizon": HORIZON, "lags": (1, 30)}
OPTIONS: dict[str, Any] = {
    "metrics.page": True, "engine.history": HISTORY, "interval.coverage": "0.9,0.5",
    "output.quality": True, "engine.max_series": 2000,
}  # fmt: skip


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("live")
    with start(folder, random_model_file(folder, **SHAPE), **OPTIONS) as daemon:
        yield daemon


@pytest.fixture
def client(daemon: Daemon) -> Iterator[Client]:
    with Client(daemon) as client:
        yield client


def now(daemon: Daemon, *of: str, **more: object) -> dict[str, Any]:
    """What is told of series, as ``KNOWN.TARGET.NAME``."""
    asked = [f"of={quote(each, safe='')}" for each in of]
    asked += [f"{name}={value}" for name, value in more.items()]
    return json.loads(daemon.get(f"/live/now?{'&'.join(asked)}"))


def told(daemon: Daemon, of: str) -> dict[str, Any]:
    """The same of one series, once its name is known."""
    eventually(lambda: now(daemon, of)["series"] != [None])
    return now(daemon, of)["series"][0]


def found(daemon: Daemon, text: str) -> dict[str, Any]:
    return json.loads(daemon.get(f"/live/find?q={quote(text, safe='')}"))


def value(hour: int) -> float:
    return 10 + float(np.sin(0.7 * hour) + 0.1 * np.cos(3.1 * hour * hour))


def hours(client: Client, name: str, begin: int, end: int) -> list[dict[str, Any]]:
    """The predictions of a tick an hour."""
    for hour in range(begin, end):
        client.tick(name, ts=STEP * (1 + hour), value=value(hour))
    return client.predictions(end - begin)


# --- what is told -----------------------------------------------------------------------------


def test_there_is_no_page_unless_it_is_asked_for(server: Server) -> None:
    assert get(server, "/live")[0] == get(server, "/live/now")[0] == 404


def test_before_it_is_ready_it_says_so() -> None:
    answer = Live(Metrics(), lambda: []).answer(b"/live/now", b"")
    assert answer
    assert (answer.status, json.loads(answer.body)) == (503, {"starting": True})


def test_whoever_may_not_read_the_metrics_may_not_look() -> None:
    pages = Live(Metrics(), lambda: []).answer
    server = Server(Metrics(), "127.0.0.1", 0, users={"me": hash_password("x")}, pages=pages)
    try:
        assert [get(server, path)[0] for path in ("/live", "/live/now", "/live/page.js")] == [
            401
        ] * 3
    finally:
        server.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:80", 200), ("[::1]:80", 200), ("localhost", 200), ("LocalHost:80", 200),
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("localhost.evil.example:80", 421),
        ("", 421),
    ],
)  # fmt: skip
def test_a_page_of_elsewhere_cannot_read_it_by_a_name_that_leads_here(
    host: str, status: int
) -> None:
    """DNS rebinding: to the browser, it would be that page's own server."""
    looked_up: list[bytes] = []

    def pages(path: bytes, query: bytes) -> Answer | None:
        looked_up.append(path)
        return Live(Metrics(), lambda: []).answer(path, query)

    server = Server(Metrics(), "127.0.0.1", 0, pages=pages)
    guarded = Server(Metrics(), "127.0.0.1", 0, users={"me": hash_password("x")}, pages=pages)

    def asked(of: Server, path: str) -> int:
        request = urllib.request.Request(of.url + path, headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    try:
        assert asked(server, "/live") == asked(server, "/live/page.js") == status
        assert len(looked_up) == 2 * (status == 200)
        assert asked(server, "/metrics") == 200
        assert asked(guarded, "/live") == 401
    finally:
        server.close()
        guarded.close()


def test_a_question_that_fails_is_an_answer_and_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def pages(path: bytes, query: bytes) -> None:
        raise RuntimeError("no")

    server = Server(Metrics(), "127.0.0.1", 0, pages=pages)
    try:
        assert get(server, "/live/now") == (500, "see the log\n")
    finally:
        server.close()
    assert "an answer failed" in caplog.text


def test_the_files_need_nothing_from_elsewhere() -> None:
    live = Live(Metrics(), lambda: [])
    for at, (name, kind) in FILES.items():
        answer = live.answer(f"/live{at}".encode(), b"")
        assert answer
        assert answer.kind.startswith(kind)
        assert answer.headers == HEADERS
        if name.startswith("uPlot"):
            continue
        text = answer.body.decode()
        assert re.findall(r"https?://[^\"']*", text) in ([], ["http://www.w3.org/2000/svg"])
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.search(r"<(script|style)>| on\w+=| style=", text)
    assert "default-src 'none'" in HEADERS
    assert "unsafe" not in HEADERS
    folder = Path(__file__).parent.parent / "streamlstm" / "page"
    assert "uPlot 1.6.32" in (folder / "README.md").read_text()
    assert "MIT" in (folder / "uPlot.LICENSE").read_text()
    assert "v1.6.32" in (folder / "uPlot.js").read_text()[:100]


def test_a_series_is_told_as_it_was_published(daemon: Daemon, client: Client) -> None:
    *_, last = hours(client, "told", 0, 40)
    it = told(daemon, "0.0.told")
    assert it["count"] == 40
    assert abs(it["heard"] - time.time()) < 60
    assert it["ts"] == last["ts"] == STEP * 40
    (inner,) = last["intervals"]
    ends = last["lower"], last["upper"], inner["lower"], inner["upper"]
    assert it["fan"] == [last["forecast"], *ends]
    quality = last["quality"]
    names = {"covered": "coverage", "over_last": "over_last_value"}
    names |= {"over_seasonal": "over_seasonal_naive"}
    for ours, theirs in names.items():
        assert it[ours] == pytest.approx(quality[theirs], rel=1e-6)
    assert it["scored"] > 30


def test_of_a_series_the_past_is_told_once_and_then_what_is_new(
    daemon: Daemon, client: Client
) -> None:
    hours(client, "past", 0, 50)
    it = told(daemon, "0.0.past")
    actual = it["actual"]
    assert actual["afresh"]
    assert len(actual["t"]) > HISTORY  # those that the features remember too
    want = range(50 - len(actual["t"]), 50)
    assert actual["t"] == [STEP * (1 + hour) for hour in want]
    assert actual["y"] == [value(hour) for hour in want]
    it = told(daemon, "50.0.past")
    assert "actual" not in it
    assert "fan" not in it
    assert it["count"] == 50
    hours(client, "past", 50, 53)
    it = told(daemon, "50.0.past")
    assert it["actual"] == {
        "t": [STEP * (1 + hour) for hour in (50, 51, 52)],
        "y": [value(hour) for hour in (50, 51, 52)],
        "afresh": False,
    }
    hours(client, "past", 53, 53 + 2 * HISTORY)
    it = told(daemon, "53.0.past")
    assert len(it["actual"]["t"]) == HISTORY  # no more is kept
    client.tick("past", ts=STEP * 100, value=1.5, reset=True)
    client.predictions(1)
    it = told(daemon, "69.0.past")
    assert it["actual"] == {"t": [STEP * 100], "y": [1.5], "afresh": True}


def test_what_never_came_is_not_told(daemon: Daemon, client: Client) -> None:
    """The features keep something at each place of the grid, whether a tick came or not."""
    sent = [(STEP * (1 + 2 * number), value(number)) for number in range(2 * SEASON)]
    for ts, y in sent:
        client.tick("every other", ts=ts, value=y)
    client.predictions(len(sent))
    actual = told(daemon, "0.0.every other")["actual"]
    assert [*zip(actual["t"], actual["y"], strict=True)] == sent[-HISTORY:]


def test_what_there_is_not_is_null(daemon: Daemon, client: Client) -> None:
    hours(client, "there", 0, 2)
    assert told(daemon, "0.0.there")["count"] == 2
    every = now(daemon, "0.0.there", "0.1.there", "0.0.not there", "x.0.there", "0.there", "", "9")
    assert [each is not None for each in every["series"]] == [
        True,
        False,
        False,
        True,
        *[False] * 3,
    ]
    client.tick("there", end=True)
    eventually(lambda: now(daemon, "0.0.there")["series"] == [None])


ODD = [
    "<b>&\"'",
    "a/b?c=d&of=1.0.x",
    "Zürich Straße",
    "1.2.3",
    "100%",
    " spaced  out ",
    "\u202eback",
]


@pytest.mark.parametrize("name", ODD)
def test_names_are_text(daemon: Daemon, client: Client, name: str) -> None:
    hours(client, name, 0, 1)
    eventually(lambda: [name] == [each["name"] for each in found(daemon, name)["found"]])
    assert told(daemon, f"0.0.{name}")["count"] == 1


def test_vital_signs_are_those_of_the_metrics(daemon: Daemon, client: Client) -> None:
    hours(client, "vital", 0, 30)
    heard = now(daemon)
    assert heard["counts"]["ticks_received"] == daemon.metric("streamlstm_ticks_received_total")
    assert heard["counts"]["active_series"] == daemon.metric("streamlstm_active_series")
    count = daemon.metric("streamlstm_tick_to_publish_seconds_count")
    assert sum(heard["latency"]) == count > 0
    for step, row in zip(heard["scored"], heard["scores"], strict=True):
        assert row[0] == daemon.metric(f'streamlstm_forecasts_scored_total{{step="{step}"}}') > 0
        assert row[1] == daemon.metric(f'streamlstm_forecasts_covered_total{{step="{step}"}}')
    assert (heard["step"], heard["horizon"], heard["season"]) == (STEP, HORIZON, SEASON)
    assert heard["coverages"] == [0.9, 0.5]
    assert "model" not in now(daemon, about=heard["about"])


def test_what_the_log_said_is_told_once(daemon: Daemon, client: Client) -> None:
    lines = now(daemon)["events"]
    assert any(text.startswith("ready ") for *_, text in lines)
    assert [text for *_, text in lines] == [
        line.split(" ", 3)[3] for line in daemon.log.splitlines()[-len(lines) :]
    ]
    assert now(daemon, events=lines[-1][0])["events"] == []
    client.send(b"bad", b"{")
    eventually(lambda: bool(now(daemon, events=lines[-1][0])["events"]))
    (number, at, level, text), *_ = now(daemon, events=lines[-1][0])["events"]
    assert (number, level) == (lines[-1][0] + 1, "warning")
    assert abs(at - time.time()) < 60
    assert text.startswith('tick dropped reason="malformed"')


def test_the_log_keeps_its_latest_lines() -> None:
    kept = logs.Latest()
    for number in range(logs.KEPT + 7):
        logs.event(30, "again", number=number)
    assert [text for *_, text in kept.lines()] == [
        f"again number={number}" for number in range(7, logs.KEPT + 7)
    ]


def test_a_quarantined_series_and_another_model_are_events(tmp_path: Path) -> None:
    """One whose states grow without bounds; then one that is sound takes its place."""
    grows = random_model(cell="rnn", activation="relu", head_activation="sigmoid")
    grows.weights["rnn.weight_hh_l0"][:] = 10 * np.eye(8)
    grows = replace(grows, golden=make_golden(grows.spec, grows.weights, 0))
    model = tmp_path / "m.safetensors"
    save_model(grows, model)
    with start(tmp_path, model, metrics__page=True) as daemon, Client(daemon) as client:
        hour = 0

        def quarantined() -> bool:
            nonlocal hour
            client.tick("grows", ts=STEP * (hour := hour + 1), value=value(hour))
            return any(text.startswith("series quar") for *_, text in now(daemon)["events"])

        eventually(quarantined)
        about = now(daemon)["about"]
        save_model(random_model(1, horizon=5), model)
        daemon.process.send_signal(signal.SIGHUP)
        eventually(lambda: now(daemon)["about"] != about)
        assert now(daemon, about=about)["horizon"] == 5
        eventually(lambda: now(daemon)["events"][-1][3].startswith("reloaded "))
        client.tick("after", ts=STEP, value=1)
        eventually(lambda: len(told(daemon, "0.0.after")["fan"][0]) == 5)


def test_each_target_is_told_by_itself(tmp_path: Path) -> None:
    engine = engine_of(inputs=3, targets=2)
    ticks(engine, [b"s"], 1, np.array([[1.0, 2.0, 3.0]]))
    first, second, third = (told_of(engine, f"0.{k}.s") for k in range(3))
    assert (first["actual"]["y"], second["actual"]["y"], third) == ([1.0], [2.0], None)
    latest = engine.work.latest.latest[0]
    assert [first["fan"], second["fan"]] == [latest[:, :, k].tolist() for k in range(2)]


# --- beside a loop that goes on ---------------------------------------------------------------


def engine_of(series: int = 100, **spec: Any) -> Engine:
    model = random_model(**spec)
    engine = Engine(model, max_series=series, max_batch=1, history=HISTORY, keep_latest=True)
    engine.warm_up()
    return engine


def ticks(engine: Engine, keys: list[bytes], hour: int, values: Any) -> Any:
    stamps, flags = np.full(len(keys), HOUR * hour), np.zeros(len(keys), np.uint8)
    return engine.step(engine.place(Arrivals(Keys.of(keys), stamps, values, flags)), 1)


def told_of(engine: Engine, of: str) -> Any:
    live = Live(Metrics(), lambda: [])
    live.engine = engine
    answer = live.answer(b"/live/now", f"of={quote(of)}".encode())
    assert answer
    return json.loads(answer.body)["series"][0]


def test_a_series_is_never_told_half_moved() -> None:
    engine, forecasts, done = engine_of(horizon=48), {}, threading.Event()
    live = Live(Metrics(), lambda: [])
    live.engine = engine

    def go_on() -> None:
        for hour in range(1, 20_000):
            moved = ticks(engine, [b"s"], hour, np.array([[value(hour)]]))
            forecasts[STEP * hour] = moved.point[0, :, 0].tolist()
            if done.is_set():
                return

    thread = threading.Thread(target=go_on)
    thread.start()
    told: list[Any] = []
    moments: set[float] = set()
    while thread.is_alive() and len(moments) < 100:
        answer = live.answer(b"/live/now", b"of=0.0.s")
        assert answer
        told += [each for each in json.loads(answer.body)["series"] if each and "fan" in each]
        moments |= {each["ts"] for each in told[-1:]}
    done.set()
    thread.join()
    assert len(moments) == 100
    for each in told:
        assert each["fan"][0] == forecasts[each["ts"]]
        assert each["actual"]["t"][-1] == each["ts"]
        assert each["actual"]["y"][-1] == value(round(each["ts"] / STEP))


# --- search -----------------------------------------------------------------------------------


def test_search_finds_what_a_plain_one_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among names that come and go, whatever lies where a piece ends."""
    monkeypatch.setattr("streamlstm.live.PIECE", 64)
    monkeypatch.setattr("streamlstm.live.ROWS", 16)
    monkeypatch.setattr("streamlstm.live.REST", 0)
    rng, engine, names = np.random.default_rng(0), engine_of(300), Names()
    pieces = ["a", "B", "ab", "é", ".", "aa", "b a", "x"]
    alive: set[bytes] = set()
    for _ in range(6):
        new = {"".join(rng.choice(pieces, rng.integers(1, 9))).encode() for _ in range(60)}
        slots = engine.series.lookup(Keys.of(sorted(new)))
        alive |= {key for key, slot in zip(sorted(new), slots, strict=True) if slot >= 0}
        gone = sorted(alive)[:: int(rng.integers(2, 5))]
        engine.series.release(engine.series.lookup(Keys.of(gone)))
        alive -= set(gone)
        for text in ["", "a", "B", "ab", "é", "aab", "nothing", "b a", "a" * 70]:
            sought = text.encode().lower()
            want = [key for key in alive if sought in key.lower()]
            want.sort(key=lambda key: (not key.lower().startswith(sought), key))
            assert [key for key, _ in names.find(engine, text.encode(), 1000)] == want
            few = names.find(engine, text.encode(), 5)
            assert len(few) == min(5, len(want))
            begin = [key for key in want if key.lower().startswith(sought)]
            assert len([key for key, _ in few if key in begin]) == min(5, len(begin))
        for key in [*alive, *gone, b"never"]:
            slot = names.slot(engine, key)
            assert (slot is not None) == (key in alive)
            if slot is not None:
                assert bytes(engine.series.names.text[slot]).rstrip(b"\0") == key


def test_of_many_series_the_first_are_told(tmp_path: Path) -> None:
    model, many = random_model_file(tmp_path), 100_000
    options = {"metrics.page": True, "input.kind": "pull", "engine.max_series": many}
    with start(tmp_path, model, **options) as daemon, Client(daemon, push=True) as client:
        for number in range(many):
            client.send(b"site/%05d/load" % number, b'{"ts": 3600, "value": 1, "warm": true}')
        eventually(lambda: daemon.metric("streamlstm_active_series") == many)
        told = found(daemon, "/0")
        assert (len(told["found"]), told["more"], told["active"]) == (MOST_FOUND, True, many)
        assert all("/0" in each["name"] for each in told["found"])
        names = [each["name"] for each in found(daemon, "SITE/9999")["found"]]
        assert names == [f"site/9999{k}/load" for k in range(10)]
        assert found(daemon, "nowhere")["found"] == []
        assert now(daemon, "0.0.site/77777/load")["series"][0]["count"] == 1


# --- in a browser -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    if not chromium():
        pytest.skip("chromium is not installed")
    with browsing() as page:
        yield page


@pytest.fixture
def page(tab: Page) -> Iterator[Page]:
    """As wide as a desk, with nothing remembered; it has to end without an error."""
    tab.go("about:blank")
    tab.problems.clear()
    tab.requests.clear()
    tab.resize(1280, 900)
    tab.prefer(prefers_color_scheme="light", prefers_reduced_motion="no-preference")
    yield tab
    assert tab.problems == []


def look(page: Page, daemon: Daemon, *names: str, ticks: int = 0) -> None:
    """Open the page, of these series; with ``ticks``, until so many of each are there."""
    page.go("about:blank")  # or only what follows the # would change
    page.go(f"{daemon.url}/live#{'&'.join(quote(name, safe='') for name in names)}")
    page.until("find('state').textContent === 'serving'")
    if ticks:
        there = f"[...cards.values()].filter((card) => card.past.count === {ticks}).length"
        page.until(f"{there} === {len(names)}")


def text(page: Page, where: str) -> str:
    return page.js(f"document.querySelector({where!r})?.textContent ?? ''")


def ask(page: Page) -> None:
    """Have it ask at once, and hear."""
    page.js("ask()")
    page.until("!asking")


def test_the_page_shows_ticks_as_they_come(page: Page, daemon: Daemon, client: Client) -> None:
    before = hours(client, "shown", 0, 40)[-1:]
    look(page, daemon, "shown")
    page.until("document.querySelector('.card canvas')")
    for hour in range(40, 43):
        (prediction,) = hours(client, "shown", hour, hour + 1)
        page.until(f"cards.get('shown').past.count === {hour + 1}")
        card = page.js("cards.get('shown').past")
        assert card["t"][-1] == STEP * (1 + hour)
        assert card["y"][-1] == value(hour)
        assert card["fan"]["rows"][0] == prediction["forecast"]
        before.append(prediction)
    made = page.js("cards.get('shown').past.made")
    assert made == [
        [STEP * (41 + k), said["forecast"][0], said["lower"][0], said["upper"][0]]
        for k, said in enumerate(before[:3])
    ]
    assert "actual" in text(page, ".read")
    assert page.js("document.querySelector('#scores').children.length") == 3
    assert "ready" in text(page, "#events")
    assert {urlsplit(url).netloc for url in page.requests if url.startswith("http")} == {
        urlsplit(daemon.url).netloc
    }


@pytest.mark.parametrize("intervals", [0, 1, 3])
def test_a_chart_has_as_many_layers_as_columns(
    page: Page, daemon: Daemon, client: Client, intervals: int
) -> None:
    """Also where the daemon makes no intervals, the ends of which are null then."""
    hours(client, f"layers {intervals}", 0, 2)
    look(page, daemon, f"layers {intervals}", ticks=2)
    fan = [[1.0, 2.0], *([[None] * 2] * 2 if not intervals else [[0.5, 1.5]] * 2 * intervals)]
    drawn = page.js(
        "(() => { const past = new Past(); past.take({count: 2, ts: 7200, actual: {t: [3600, 7200],"
        f" y: [1, 2], afresh: true}}, fan: {json.dumps(fan)}}}, 3600);"
        f" const place = find('cards').appendChild(element('div', {{className: 'plot'}}));"
        f" const chart = new Chart(place, {intervals}, () => {{}});"
        f" chart.show(columnsOf(past, 10, 3600, {intervals}), 7200); const {{plot}} = chart;"
        " return [plot.series.length, plot.data.length, plot.data[0], plot.data.at(-3)]; })()"
    )
    assert drawn[0] == drawn[1] == 5 + 2 + 2 * intervals
    assert drawn[2:] == [[3600, 7200, 10_800, 14_400], [None, 2, 1, 2]]


def test_what_was_said_before_stands_beside_what_came(
    page: Page, daemon: Daemon, client: Client
) -> None:
    """The k-th forecast where k - 1 ticks were not seen, and dots where the interval was missed."""
    (first,) = hours(client, "beside", 0, 20)[-1:]
    look(page, daemon, "beside", ticks=20)
    with daemon.stopped():
        for hour in (20, 21):
            client.tick("beside", ts=STEP * (1 + hour), value=1e6)
    client.predictions(2)
    page.until("cards.get('beside').past.count === 22")
    made = page.js("cards.get('beside').past.made")
    expected = [
        [STEP * (21 + k), first["forecast"][k], first["lower"][k], first["upper"][k]]
        for k in range(2)
    ]
    assert made == expected
    missed = page.js(f"cards.get('beside').past.missed(0, {STEP})")
    assert missed == [[STEP * 21, 1e6], [STEP * 22, 1e6]]
    page.js("document.querySelector('.card').focus()")
    page.press("ArrowLeft")
    page.until("document.querySelector('.read').textContent.includes('outside its interval')")


def test_keys_alone_find_open_read_and_close(page: Page, daemon: Daemon, client: Client) -> None:
    for name in ("north/wind", "north/sun", "south/wind"):
        hours(client, name, 0, 5)
    eventually(lambda: len(found(daemon, "north/")["found"]) == 2)
    look(page, daemon, "south/wind")
    page.press("/")
    assert page.js("document.activeElement.id") == "search"
    page.type("NORTH/")
    page.until("found.children.length === 2")
    assert page.js("search.getAttribute('aria-expanded')") == "true"
    assert [text(page, f"#found-{k} .name") for k in (0, 1)] == ["north/sun", "north/wind"]
    page.press("ArrowDown")
    chosen = "document.getElementById(search.getAttribute('aria-activedescendant'))"
    page.until(f"{chosen}.textContent.startsWith('north/wind')")
    page.press("ArrowUp")
    page.press("ArrowUp")  # round about
    page.until(f"{chosen}.textContent.startsWith('north/wind')")
    page.press("Enter")
    page.until("cards.has('north/wind') && results.hidden")
    assert page.js("document.activeElement.ariaLabel") == "north/wind"
    page.press("/")
    page.press("/")  # within the field it is a letter
    page.until("search.value === '/'")
    page.press("Escape")
    page.until("search.value === '' && results.hidden")
    page.press("Escape")
    page.until("document.activeElement === document.body")
    page.until("cards.get('north/wind').past.count === 5")
    assert page.js("location.hash") == "#south%2Fwind&north%2Fwind"
    page.js("cards.get('south/wind').node.focus()")
    page.press("ArrowDown")
    assert page.js("document.activeElement.ariaLabel") == "north/wind"
    page.press("ArrowLeft")
    page.press("ArrowLeft")
    page.until(f"document.activeElement.textContent.includes('actual {value(3):.2f}')")
    page.press("x")
    page.until("!cards.has('north/wind')")
    assert page.js("document.activeElement.ariaLabel") == "south/wind"
    page.press("x")
    assert page.js("document.activeElement.id") == "search"
    assert "No chart is open" in text(page, "#empty")


def test_what_was_found_is_scrolled_by_touch_and_opened_by_a_tap(
    page: Page, daemon: Daemon, client: Client
) -> None:
    names = [f"touch/{number:02d}" for number in range(40)]
    for name in names:
        hours(client, name, 0, 1)
    eventually(lambda: len(found(daemon, "touch/")["found"]) == 40)
    page.resize(360, 740, phone=True)
    page.send("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        look(page, daemon, names[0])
        page.js("search.focus()")
        page.type("touch/")
        page.until("document.querySelectorAll('#found li').length === 40")
        page.js("found.onscrollend = () => { found.ended = true; }")
        x, y = page.js("(({x, y}) => [x + 60, y + 320])(found.getBoundingClientRect())")
        page.touch(x, y, *(y - 20 * k for k in range(1, 12)))
        page.until("found.scrollTop > 0 && found.ended")
        assert page.js("[[...cards.keys()], results.hidden]") == [names[:1], False]
        there = f"document.elementFromPoint({x}, {y}).closest('li').dataset.name"
        page.until(f"!cards.has({there})")
        tapped = page.js(there)
        page.touch(x, y)
        page.until(f"cards.has({json.dumps(tapped)}) && results.hidden")
    finally:
        page.send("Emulation.setTouchEmulationEnabled", enabled=False)


def test_the_link_to_the_charts_leaves_them(page: Page, daemon: Daemon, client: Client) -> None:
    hours(client, "stays", 0, 1)
    look(page, daemon, "stays")
    page.press("Tab")
    assert page.js("document.activeElement.className") == "skip"
    page.press("Enter")
    page.until("document.activeElement === find('cards')")
    assert page.js("[[...cards.keys()], location.hash]") == [["stays"], "#stays"]


def test_where_ticks_are_missing_no_line_is_drawn(
    page: Page, daemon: Daemon, client: Client
) -> None:
    hours(client, "holes", 0, 10)
    hours(client, "holes", 14, 15)  # alone
    hours(client, "holes", 17, 20)
    look(page, daemon, "holes", ticks=14)
    drawn = page.js(
        "(() => { const {plot} = cards.get('holes').chart, came = plot.data.at(-2);"
        " return plot.data[0].flatMap((t, i) => came[i] === null ? [t] : []); })()"
    )
    assert [t for t in drawn if t > STEP * 9] == [STEP * 11, STEP * 16]
    page.js("cards.get('holes').node.focus()")
    for _ in range(4):
        page.press("ArrowLeft")  # from the last of three over nothing to the one that is alone
    page.until(f"document.activeElement.textContent.includes('actual {value(14):.2f}')")


def test_a_chart_keeps_what_the_daemon_forgot(page: Page, daemon: Daemon, client: Client) -> None:
    hours(client, "keeps", 0, 40)
    look(page, daemon, "keeps", ticks=40)
    client.tick("keeps", ts=STEP * 100, value=1.5, reset=True)
    client.predictions(1)
    page.until("cards.get('keeps').past.count === 1")
    card = page.js("cards.get('keeps').past")
    assert card["t"][-2:] == [STEP * 40, STEP * 100]
    assert card["y"][-2:] == [value(39), 1.5]


def test_what_a_key_chose_is_read_while_ticks_come(
    page: Page, daemon: Daemon, client: Client
) -> None:
    hours(client, "held", 0, 30)
    look(page, daemon, "held", ticks=30)
    page.js("cards.get('held').node.focus()")
    for _ in range(3):
        page.press("ArrowLeft")
    read = f"document.querySelector('.read').textContent.includes('actual {value(27):.2f}')"
    page.until(read)
    assert page.js("document.querySelector('.read').ariaLive") == "polite"
    hours(client, "held", 30, 36)
    page.until("cards.get('held').past.count === 36")
    page.js("new Promise(requestAnimationFrame)")  # drawn
    assert page.js(read)
    page.press("ArrowRight")
    page.until(f"document.querySelector('.read').textContent.includes('actual {value(28):.2f}')")


def test_it_asks_seldom_where_none_answers_and_not_while_it_is_hidden(
    page: Page, daemon: Daemon
) -> None:
    look(page, daemon)
    page.until("!asking")
    page.js("globalThis.theirs = fetch; globalThis.asks = 0")
    page.js("globalThis.fetch = () => { asks++; return Promise.reject(new TypeError('gone')); }")
    waits = []
    for _ in range(5):
        page.js("ask()")
        page.until("!asking")
        waits.append(page.js("wait"))
    assert waits == [2000, 4000, 8000, 8000, 8000]
    assert "does not answer" in text(page, "#gone")
    page.js("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.js("fetch = theirs; timer = 0; ask()")
    page.until("!asking && find('state').textContent === 'serving'")
    assert page.js("[wait, timer]") == [1000, 0]
    page.js("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.until("timer !== 0")


def test_a_name_is_never_markup(page: Page, daemon: Daemon, client: Client) -> None:
    name = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    hours(client, name, 0, 2)
    eventually(lambda: len(found(daemon, name)["found"]) == 1)
    look(page, daemon, name, ticks=2)
    assert text(page, ".card h2") == name
    page.js("search.focus()")
    page.type("<img")
    page.until("found.children.length === 1")
    assert text(page, "#found .name") == name
    assert page.js("document.querySelectorAll('img, .card script, #found script').length") == 0


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (800, "light"), (1920, "dark")])
def test_it_fits_where_it_is_shown(
    page: Page, daemon: Daemon, client: Client, width: int, scheme: str
) -> None:
    names = f"fits {width}", f"{width} in " + "a rather long name " * 2
    for name in names:
        hours(client, name, 0, 40)
    page.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    page.resize(width, 800, phone=width < 500)
    look(page, daemon, *names, ticks=40)
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js("getComputedStyle(document.querySelector('#body')).transitionDuration") == "0s"
    ground, ink = page.js(
        "(({backgroundColor, color}) => [backgroundColor, color])(getComputedStyle(document.body))"
    )
    dark, light = (sum(map(int, re.findall(r"\d+", each))) for each in (ground, ink))
    assert (dark < light) == (scheme == "dark")


def pixels(page: Page, card: str) -> set[tuple[int, ...]]:
    """The colours that are in a chart."""
    found = page.js(
        f"(() => {{ const from = cards.get('{card}').plot.querySelector('canvas');"
        " const c = new OffscreenCanvas(from.width, from.height);"
        " c.getContext('2d', {willReadFrequently: true}).drawImage(from, 0, 0);"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const s = new"
        " Set(); for (let i = 0; i < d.length; i += 4) if (d[i + 3] === 255) s.add(d[i] * 65536 +"
        " d[i + 1] * 256 + d[i + 2]); return [...s]; })()"
    )
    return {(each >> 16, each >> 8 & 255, each & 255) for each in found}


def test_the_chart_is_drawn_anew_where_it_grows_dark(
    page: Page, daemon: Daemon, client: Client
) -> None:
    """By its pixels: actual and forecast, in the colours of the one and the other."""
    hours(client, "dark", 0, 40)
    look(page, daemon, "dark", ticks=40)
    ask(page)
    light = {(0x1F, 0x77, 0xB4), (0xD9, 0x5F, 0x02)}
    dark = {(0x63, 0xAE, 0xEA), (0xFF, 0x9D, 0x57)}
    assert light <= pixels(page, "dark")
    page.prefer(prefers_color_scheme="dark")
    eventually(lambda: dark <= pixels(page, "dark"))
    assert not light & pixels(page, "dark")


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        return listening.getsockname()[1]


def test_without_data_it_says_what_to_do_and_it_outlives_the_daemon(
    page: Page, tmp_path: Path
) -> None:
    model, port = random_model_file(tmp_path, **SHAPE), free_port()
    options = OPTIONS | {"metrics.port": port, "checkpoint.path": tmp_path / "state"}
    with start(tmp_path, model, **options) as daemon:
        look(page, daemon)
        page.until("document.querySelector('#empty h2')")
        assert "streamlstm publish" in text(page, "#empty")
        with Client(daemon) as client:
            hours(client, "first", 0, 3)
            page.until("cards.get('first')?.past.count === 3")  # it opens by itself
            hours(client, "first", 3, 4)
            page.until("cards.get('first').past.count === 4")
        made = page.js("cards.get('first').past.made.length")
        assert daemon.stop() == 0
    page.until("find('state').textContent === 'gone'")
    assert "does not answer" in text(page, "#gone")
    with start(tmp_path, model, **options) as daemon, Client(daemon) as client:
        page.until("find('state').textContent === 'serving' && find('gone').hidden")
        (prediction,) = hours(client, "first", 4, 5)
        page.until("cards.get('first').past.count === 5")
        card = page.js("cards.get('first').past")
        assert len(card["made"]) == made + 1
        assert card["fan"]["rows"][0] == prediction["forecast"]
        page.go("about:blank")
        look(page, daemon, "first", ticks=5)  # what was said before is remembered
        assert len(page.js("cards.get('first').past.made")) == made + 1
    away = ("ERR_CONNECTION", "503", "ERR_EMPTY_RESPONSE")
    page.problems[:] = [each for each in page.problems if not any(word in each for word in away)]
