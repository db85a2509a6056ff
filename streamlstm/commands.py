"""The commands that people look at: each takes its parsed arguments and prints."""

import argparse
import collections
import getpass
import itertools
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.progress import Progress
from rich.table import Table as RichTable
from rich.text import Text

from streamlstm import adapt, fit_options, intervals, rolling, speed
from streamlstm import demo as demonstration
from streamlstm.config import ConfigError, Engine, Input
from streamlstm.console import check_out, how, say, spacing
from streamlstm.datasets.bundled import DATASETS, table, table_for
from streamlstm.datasets.frames import SeriesData, heads
from streamlstm.datasets.inputs import Columns
from streamlstm.engine import state_fields
from streamlstm.golden import check_golden, network_of
from streamlstm.kernels import cpu
from streamlstm.model import Model, Spec
from streamlstm.model_file import load_model, save_model
from streamlstm.peers import Comparison, check_peers, compare
from streamlstm.peers import effort as peers_effort
from streamlstm.plot import check_plot, plot_charts, plot_forecasts
from streamlstm.report import charts_by_step, charts_of_series, write_report
from streamlstm.search import search
from streamlstm.security import make_keys
from streamlstm.series import bytes_per_series
from streamlstm.tables import intervals_line, peers_table, scores_table, series_table
from streamlstm.terminal import (
    FitBar,
    LeavingConsole,
    fan_chart,
    print_lines,
    printable,
    steps_ahead,
    when,
)
from streamlstm.train import fit as fit_model
from streamlstm.web import hash_password

LIVE_SECONDS = 12.0
"""How long the demo takes over the unseen ticks where someone looks on."""


def _cut(series: list[SeriesData], share: float) -> list[int]:
    """How many ticks of each series come before its latest ``share``."""
    return [len(s.ts) - round(share * len(s.ts)) for s in series]


def _list(text: str) -> list[str]:
    return [] if text in ("", "none") else text.split(",")


def _check_plot(path: Path) -> None:
    check_plot()
    check_out("--plot", path, ".png")


# --- fit, inspect, backtest -----------------------------------------------------------------------


def fit(options: argparse.Namespace) -> None:
    """``streamlstm fit``."""
    console = LeavingConsole(stderr=True, quiet=options.quiet)
    given = {
        name: _list(value) if name in ("lags", "calendar") else value
        for name in fit_options.FitOptions.model_fields
        if (value := getattr(options, f"fit_{name}", None)) is not None
    }
    chosen = fit_options.chosen(given | {"timezone": options.timezone or "UTC"}, flags=True)
    check_out("--out", options.out, read=[options.data])
    columns = Columns.named(
        targets=_list(options.targets),
        features=_list(options.features),
        known=_list(options.known),
        static=_list(options.static),
        horizon=chosen.horizon,
    )
    data = table(options.data, columns, **how(options))
    say(console, data.notes)
    series = heads(data.series, _cut(data.series, options.holdout))
    with FitBar(console) as bar:
        if options.budget:
            model, report = search(
                series,
                chosen,
                options.budget,
                bar,
                lambda tried: print_lines(console, str(tried)),
                name=data.name,
                inputs=data.inputs,
            )
        else:
            model, report = fit_model(series, chosen, bar, name=data.name, inputs=data.inputs)
    save_model(model, options.out)
    say(console, report.notes)
    if report.interrupted:
        print_lines(console, "interrupted: the best weights so far were kept", "yellow")
    targets, by_step = model.spec.targets, report.skill.reshape(-1, model.spec.targets)
    shown = [(k, by_step[k - 1]) for k in model.spec.scored]
    names = [f"{each.name} " for each in model.spec.of_role("target")] if targets > 1 else [""]
    skill = "; ".join(
        name + ", ".join(f"{skill[j]:.3f} at {k}" for k, skill in shown)
        for j, name in enumerate(names)
    )
    print_lines(
        console,
        f"{options.out}: model {model.id} of {report.series:,} series, {report.ticks:,} ticks,"
        f" {report.updates} updates in {report.seconds:.1f} s\n"
        f"error on unseen data over the naive forecast's, by steps ahead: {skill}\n"
        f"next: streamlstm backtest {options.out} {options.data}{_read_as(options)},"
        f" or streamlstm run --set model={options.out}",
    )


def _read_as(options: argparse.Namespace) -> str:
    """What else says how to read the table; its zone and further columns the model knows."""
    named = " ".join(
        f"--{name} {shlex.quote(value)}"
        for name in ("id", "ds", "y", "start", "freq")
        if (value := getattr(options, name))
    )
    return " --wide" * options.wide + f" {named}" * bool(named)


def inspect(options: argparse.Namespace) -> None:
    """``streamlstm inspect``."""
    if options.kernels:
        _inspect_kernels(options)
        return
    if options.model is None:
        raise ConfigError("name a model file, or ask for --kernels")
    model = load_model(options.model)
    check_golden(model, cpu)
    spec = model.spec
    bands = intervals.plan(
        spec.horizon, spec.targets, 0.9, model.errors, spec.scored, spread=spec.spread
    )
    fields = state_fields(spec, bands, adapt.plan(spec, spec.scored))
    per_series = {"recurrent": cpu.bytes_per_series(network_of(spec, model.weights))}
    # of a daemon with default options
    per_series |= bytes_per_series(fields, Engine().max_series, Input().max_key)
    report = {
        "model": model.id,
        "spec": model.spec.model_dump(mode="json"),
        "weights": {name: list(weight.shape) for name, weight in model.weights.items()},
        "parameters": sum(weight.size for weight in model.weights.values()),
        "bytes_per_series": per_series | {"total": sum(per_series.values())},
        "million_steps_per_second": speed.million_steps_per_second(model),
        "provenance": dict(model.provenance),
    }
    if options.json:
        print(json.dumps(report))
        return
    console = LeavingConsole()
    console.print(_about(model, report))
    memory = RichTable(title="memory per series", show_footer=True)
    memory.add_column("state", "total")
    memory.add_column("bytes", f"{sum(per_series.values()):,}", justify="right")
    for name, size in per_series.items():
        memory.add_row(name, f"{size:,}")
    console.print(memory)


def _inspect_kernels(options: argparse.Namespace) -> None:
    """What the step is compiled for here and, of a model if one is named, how fast it is."""
    host = speed.host()
    report: dict[str, Any] = {"host": host._asdict()}
    if options.model is not None:
        model = load_model(options.model)
        check_golden(model, cpu)
        report["model"] = model.id
        report["million_steps_per_second"] = speed.million_steps_per_second(model)
    if options.json:
        print(json.dumps(report))
        return
    console = LeavingConsole()
    table = RichTable(show_header=False, box=None)
    table.add_column(style="dim")
    table.add_row("cpu", f"{host.cpu}, {host.cores} cores")
    table.add_row("vectors", f"{host.lanes} float32")
    table.add_row("register block", f"{host.rows} series x {host.vectors} vectors")
    table.add_row("threads", str(host.threads))
    for batch, rate in report.get("million_steps_per_second", {}).items():
        table.add_row(f"batch of {batch:,}", f"{rate:.3g} million steps/s")
    console.print(table)


def _about(model: Model, report: dict[str, Any]) -> RichTable:
    spec = model.spec
    scaling = spec.scaling
    how = {"running": f"running, over {scaling.memory} ticks", "fixed": "fixed", "none": "none"}
    base = {"seasonal": f"the value {spec.season} steps before", "last": "the last value"}
    if blend := spec.blend:
        short = "that" if blend.short == blend.long else f"those {blend.short} and"
        base["blend"] = f"the last value, and {short} {blend.long} steps before"
        if smoothing := blend.smoothing:
            base["blend"] += (
                f"; a season of {smoothing.season} steps, smoothed: {smoothing.level:.0%} of what"
                f" is new moves its level, {smoothing.profile:.0%} of the rest its profile"
            )
    activations = (
        each if isinstance(each, str) else ", ".join(each)
        for each in (spec.activation, spec.recurrent_activation)
    )
    rows = {
        "model": f"{model.id}, {report['parameters']:,} parameters",
        "network": f"{spec.layers} x {spec.cell.upper()} of {spec.hidden},"
        f" {' and '.join(activations)}"
        + f", run afresh over the last {spec.window} inputs"
        * bool(spec.window),
        "input": _inputs(spec)
        + f", lags {', '.join(map(str, spec.lags))}" * bool(spec.lags)
        + f", calendar {', '.join(spec.calendar)} ({spec.timezone})" * bool(spec.calendar)
        + ", time since the tick before" * bool(spec.elapsed_ns),
        "scaling": how[scaling.kind],
        "output": f"{steps_ahead(spec.horizon, spec.step_ns)}, {spec.targets} target"
        + "s" * (spec.targets > 1),
        "corrects": base.get(spec.base, "nothing"),
        **({} if spec.floor is None else {"floor": f"no forecast lies below {spec.floor:g}"}),
        "speed here": "; ".join(
            f"{rate:.3g} million steps/s in batches of {batch:,}"
            for batch, rate in report["million_steps_per_second"].items()
        ),
        "interval": "starts from errors on unseen data"
        if model.errors
        else "learned on the stream",
        **{
            f"· {name}": str(value)
            for name, value in model.provenance.items()
            if name not in ("options", "search")
        },
    }
    table = RichTable(show_header=False, box=None)
    table.add_column(style="dim")
    for name, value in rows.items():
        table.add_row(Text(printable(name)), Text(printable(value)))
    return table


def _inputs(spec: Spec) -> str:
    """The values of a tick, in their order."""
    if not spec.roles:
        return f"{spec.inputs} value{'s' * (spec.inputs > 1)}"
    what = {"target": "target", "measured": "measured", "number": "number of the series"}
    what["known"] = f"known, {spec.horizon} steps ahead of the tick"
    return "; ".join(
        f"{each.name} ({what.get(each.role) or 'one of ' + ', '.join(each.categories)})"
        for each in spec.roles
    )


def backtest(options: argparse.Namespace) -> None:
    """``streamlstm backtest``."""
    console = LeavingConsole(stderr=True, quiet=options.json)
    check_peers(options.peers)
    if options.plot:
        _check_plot(options.plot)
    if options.png:
        check_plot()
        check_out("--png", options.png, ".png")
    if options.html:
        check_out("--html", options.html, ".html")
    model = load_model(options.model)
    check_peers(options.peers, model.spec)
    data = table_for(model.spec, options.data, **how(options))
    say(console, data.notes)
    say(console, spacing(data, model.spec))
    coverages = tuple(dict.fromkeys((options.coverage, *options.levels)))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("backtest", total=rolling.effort(data.series, model.spec))
        found = rolling.backtest(
            model,
            options.data,
            data.series,
            _cut(data.series, options.last),
            coverages,
            learning=not options.no_learning,
            progress=lambda ticks: bar.advance(task, ticks),
        )
    if found.skipped:
        say(console, [f"{found.skipped:,} of {len(data.series):,} series skipped: too short"])
    say(console, found.notes)
    peers = _compare(options, console, model, data.series) if options.peers else None
    unit = DATASETS[options.data].unit if options.data in DATASETS else ""
    if options.plot:
        name = found.series[0].name
        scores = next(iter(found.by_target.values()))
        plot_forecasts(options.plot, name, unit, *found.first, scores)
        print_lines(console, f"drawn: {options.plot}")
    if options.png:
        plot_charts(options.png, [*charts_by_step(found, unit), *charts_of_series(found)])
        print_lines(console, f"drawn: {options.png}")
    if options.html:
        write_report(options.html, found, unit, peers)
        print_lines(console, f"written: {options.html}")
    if options.json:
        beside = {"peers": peers.as_json()} if peers else {}
        print(msgspec.json.encode(found.as_json() | beside).decode())  # NaN is null
        return
    out = LeavingConsole()
    named = {name if len(found.by_target) > 1 else "": s for name, s in found.by_target.items()}
    for name, scores in named.items():
        out.print(scores_table(scores, unit, name))
    if options.by_series:
        out.print(series_table(found.worst_first()))
    for name, scores in named.items():
        print_lines(out, intervals_line(scores, name))
    if peers:
        out.print(peers_table(peers, unit))


def _compare(
    options: argparse.Namespace, console: Console, model: Model, series: list[SeriesData]
) -> Comparison:
    effort = peers_effort(series, options.peers, options.peer_origins)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("peers", total=effort)
        return compare(
            model,
            series,
            _cut(series, options.last),
            options.peers,
            origins=options.peer_origins,
            coverage=options.coverage,
            learning=not options.no_learning,
            progress=lambda done: bar.advance(task, done),
        )


# --- keys -----------------------------------------------------------------------------------------


def keys(options: argparse.Namespace) -> None:
    """``streamlstm keys``."""
    if options.password:
        _hash_password(options.name)
        return
    public, secret = make_keys(Path(options.name))
    print_lines(
        LeavingConsole(),
        f"{secret}: secret, stays with whom it belongs to\n"
        f"{public}: public, to be given to the other side\n"
        f"of a daemon: security.secret_key = {json.dumps(str(secret.absolute()))},"
        f" and its clients take --server-key {public}\n"
        f"of a client: {public.name} goes into the daemon's folder security.clients,"
        f" and the client takes --key {secret}",
    )


def _hash_password(name: str) -> None:
    if sys.stdin.isatty():
        password = getpass.getpass(f"password of {name}: ")
        if getpass.getpass("once more: ") != password:
            raise ConfigError("the two differ; type it again")
    else:
        password = sys.stdin.readline().rstrip("\n")
    if not password:
        raise ConfigError("--password: an empty one keeps nobody out; type one, or pipe it in")
    line = f"{json.dumps(name)} = {json.dumps(hash_password(password))}"
    if sys.stdout.isatty():
        print_lines(
            LeavingConsole(stderr=True), "for streamlstm.toml, under [metrics.users]:", "dim"
        )
    print(line)


# --- demo -----------------------------------------------------------------------------------------


def demo(options: argparse.Namespace) -> None:
    """``streamlstm demo``."""
    console = LeavingConsole(stderr=options.json)
    show = LeavingConsole(stderr=True, quiet=True) if options.json else console
    if options.plot:
        _check_plot(options.plot)
    known = DATASETS.get(options.data)
    data = table(options.data, **how(options))
    unit = known.unit if known else ""
    season = options.season if options.season is not None else known.season if known else None
    print_lines(show, known.title if known else options.data, "bold")
    say(show, data.notes)
    live = Live(console=show, refresh_per_second=8, transient=True)
    watching = show.draws and not options.json
    unseen = sum(len(s.ts) for s in data.series) * demonstration.UNSEEN
    shown = 0.0

    def on_fitted(made: demonstration.Fitted) -> None:
        bar.__exit__(None, None, None)
        say(show, made.notes)
        print_lines(
            show,
            f"fitted in {made.seconds:.1f} s; its error is {made.skill:.0%} of the naive"
            " forecast's on data it did not learn from; starting the daemon",
        )

    def on_tick(stream: demonstration.Stream) -> None:
        nonlocal shown
        if watching and stream.predictions and time.monotonic() > shown + 0.12:
            shown = time.monotonic()
            live.start()
            live.update(_demo_view(stream, show, unit))

    def on_end(
        stream: demonstration.Stream, summary: demonstration.Summary, reached: dict[str, Any]
    ) -> None:
        live.stop()
        if options.plot:
            title = known.title if known else data.series[0].name
            drawn = (stream.actual[0], stream.issued()[0], summary.scores)
            plot_forecasts(options.plot, title, unit, *drawn)
        if options.json:
            print(summary.as_json(), flush=True)
        else:
            if watching:
                show.print(_demo_view(stream, show, unit))
            _print_summary(show, summary, unit)
        if options.keep_running:
            _keep_running(show, stream, reached)

    bar = FitBar(show)
    try:
        with demonstration.ended_in_order():
            demonstration.demo(
                data,
                season,
                on_fit=bar.__enter__(),
                on_fitted=on_fitted,
                on_tick=on_tick,
                per_second=unseen / LIVE_SECONDS if watching else 0.0,
                on_end=on_end,
            )
    finally:
        bar.__exit__(None, None, None)
        live.stop()


def _demo_view(stream: demonstration.Stream, console: Console, unit: str) -> Group:
    width, height = console.size.width, max(8, min(20, console.size.height - 8))
    horizon = stream.fitted.model.spec.horizon
    actual, forecast, lower, upper = stream.view(3 * horizon)
    series = stream.fitted.series[0]
    now = when(int(series.ts[stream.fitted.known[0] - 1 + stream.latest]))
    return Group(
        Text(f"{printable(series.name)}{f', {unit}' if unit else ''}: {now} UTC,"
             f" and the {horizon} steps ahead as published by the daemon", "bold"),
        fan_chart(actual, forecast, lower, upper, width, height),
        Text(f"{stream.predictions:,} of {stream.expected:,} predictions received", "dim"),
    )  # fmt: skip


def _print_summary(console: Console, summary: demonstration.Summary, unit: str) -> None:
    console.print(scores_table(summary.scores, unit))
    latency = ", ".join(
        f"{name} {1e6 * seconds:,.0f} us" for name, seconds in summary.latency.items()
    )
    print_lines(
        console,
        f"{intervals_line(summary.scores)}\n"
        f"{summary.ticks:,} ticks sent, {summary.predictions:,} predictions received,"
        f" {summary.ticks_per_second:,.0f} ticks/s; from receipt to publication: {latency}\n"
        f"all in {summary.total_seconds:.0f} s. Next, with your own data:\n"
        "  streamlstm fit YOUR.csv --out model.safetensors\n"
        "  streamlstm run --set model=model.safetensors &\n"
        "  streamlstm watch &\n"
        "  streamlstm publish YOUR.csv",
    )


def _keep_running(console: Console, stream: demonstration.Stream, reached: dict[str, Any]) -> None:
    """Go on sending: the same weeks again and again, their times moved on, two ticks a second."""
    (output,), metrics = reached["output"], reached["metrics"]
    series, spec = stream.fitted.series[0], stream.fitted.model.spec
    season = spec.season or 1
    again = len(series.ts) - season * max(1, min(4, len(series.ts) // season - 1))
    ts = int(series.ts[-1])
    try:
        print_lines(
            console,
            f"the daemon goes on until Ctrl-C: streamlstm watch {output}, streamlstm top {metrics}",
        )
        for row in itertools.cycle(range(again, len(series.ts))):
            ts += spec.step_ns or 1_000_000_000
            stream.feed.send(series.name, ts, series.values[row].tolist())
            deadline = time.monotonic() + 0.5
            while (left := deadline - time.monotonic()) > 0:
                collections.deque(stream.listener.receive(left), maxlen=0)
    except KeyboardInterrupt:
        console.print()
