"""``streamlstm ...``: the command line. Errors are one line with the mend; 2 for usage, else 1.

Each command imports what it needs when it is called, so that the daemon starts without the
libraries of those that people look at.
"""

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, get_args

from streamlstm import compiled
from streamlstm.config import INPUT, OUTPUT, Config, ConfigError, Format, load_config
from streamlstm.fit_options import FitOptions

FORMATS = get_args(Format)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and what may have been meant."""

    def error(self, message: str) -> NoReturn:
        if found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            choices = re.findall(r"[\w.-]+", found[2])
            if close := difflib.get_close_matches(found[1], choices, n=1):
                message = f"{message}; did you mean '{close[0]}'?"
        elif found := re.search(r"unrecognized arguments: (--[\w-]+)", message):
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            if close := difflib.get_close_matches(found[1], known, n=1):
                message = f"{message}; did you mean '{close[0]}'?"
        self.exit(2, f"{self.prog}: {message}; see '{self.prog} --help'\n")

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Let the subcommand's own parser speak of flags it does not know."""
        parsed, unknown = self.parse_known_args(*args, **kwargs)
        if unknown:
            speaker: _Parser = getattr(parsed, "parser", self)
            speaker.error(f"unrecognized arguments: {' '.join(unknown)}")
        return parsed


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        compiled.choose_folder()
        code = int(options.call(options) or 0)
        sys.stdout.flush()  # a reader that has left is noticed here, not at exit
        return code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ConfigError as error:
        return _fail(options, error, 2)
    except (ValueError, OSError, RuntimeError) as error:
        if type(error) in (ValueError, RuntimeError):  # ours have names of their own
            raise
        return _fail(options, error, 1)


def _fail(options: argparse.Namespace, error: Exception, code: int) -> int:
    message = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    message = "".join(c if c.isprintable() else "\ufffd" for c in message)
    print(f"streamlstm {options.command}: {message}", file=sys.stderr)
    return code


# --- commands -------------------------------------------------------------------------------------


def _load(options: argparse.Namespace) -> Config:
    overrides = {}
    for text in options.set:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--set {text}: write --set option=value")
        overrides[name] = value
    return load_config(options.config, overrides)


def _run(options: argparse.Namespace) -> int:
    from streamlstm import service

    return service.run(_load(options), announce=options.announce)


def _check(options: argparse.Namespace) -> int:
    from streamlstm import service

    found, doubtful = service.check(_load(options))
    for each in doubtful:
        print(f"streamlstm check: warning: {each}", file=sys.stderr)
    print(found)
    return 0


def _replay(options: argparse.Namespace) -> int:
    from streamlstm import offline

    return offline.command(_load(options), options)


def _refit(options: argparse.Namespace) -> int:
    from streamlstm import refit

    return refit.command(_load(options), options)


def _forecast(options: argparse.Namespace) -> None:
    from streamlstm import forecast

    forecast.command(options)


def _exchange(name: str) -> Callable[[argparse.Namespace], None]:
    def call(options: argparse.Namespace) -> None:
        from streamlstm import exchange

        command: Callable[[argparse.Namespace], None] = getattr(exchange, name)
        command(options)

    return call


def _for_people(name: str) -> Callable[[argparse.Namespace], int | None]:
    def call(options: argparse.Namespace) -> int | None:
        from streamlstm import commands

        command: Callable[[argparse.Namespace], int | None] = getattr(commands, name)
        return command(options)

    return call


# --- their arguments ------------------------------------------------------------------------------


def _parser() -> _Parser:
    parser = _Parser(
        prog="streamlstm",
        description="A streaming forecaster: an LSTM state per series, a forecast per tick.",
    )
    parser.add_argument("--version", action="version", version=version("streamlstm"))
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=_Parser
    )

    def command(name: str, call: Callable[[argparse.Namespace], int | None], about: str) -> _Parser:
        made: _Parser = commands.add_parser(
            name, help=about, description=about[0].upper() + about[1:] + "."
        )
        made.set_defaults(call=call, parser=made)
        return made

    demo = command("demo", _for_people("demo"), "see it all at work on real data, in a minute")
    demo.add_argument(
        "--data",
        default="electricity",
        metavar="NAME",
        help="electricity (default), weather, sea, stock, water, or a CSV or Parquet file",
    )
    demo.add_argument("--season", type=_count, metavar="STEPS", help="of your file; 0: none")
    _table_arguments(demo)
    demo.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    demo.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the forecasts too")
    demo.add_argument(
        "--keep-running",
        action="store_true",
        help="leave the daemon up, and ticks coming, until Ctrl-C",
    )

    fit = command("fit", _for_people("fit"), "fit a model to a table of series")
    fit.add_argument("data", help="a CSV or Parquet file, or the name of a bundled series")
    fit.add_argument(
        "--out",
        type=Path,
        default=Path("model.safetensors"),
        metavar="FILE",
        help="the model file to write (default: model.safetensors)",
    )
    fit.add_argument(
        "--holdout",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="leave the latest share of each series unseen, to be backtested on (default: 0)",
    )
    fit.add_argument(
        "--budget",
        type=_duration,
        metavar="TIME",
        help="look for better options than the defaults for so long in all, as 90s, 5m or 1h, then"
        " fit with the best; those given here stay as they are",
    )
    fit.add_argument("--quiet", action="store_true", help="no progress, no summary")
    _table_arguments(fit)
    _input_arguments(fit)
    for name, field in FitOptions.model_fields.items():
        if name in ("elapsed", "spread"):
            usual = "True" if field.default else "where ticks are missing"
            fit.add_argument(
                f"--{name}",
                dest=f"fit_{name}",
                action=argparse.BooleanOptionalAction,
                help=f"{field.description} (default: {usual})",
            )
        elif name != "timezone":  # that of the table
            about = "" if field.default is None else f" (default: {field.default})"
            about = "; or none" if name in ("lags", "calendar") else about
            fit.add_argument(
                f"--{name.replace('_', '-')}",
                dest=f"fit_{name}",
                metavar="VALUE",
                help=f"{field.description}{about}",
            )

    bring = command(
        "import", _exchange("import_model"), "make a model of one from Keras, PyTorch or ONNX"
    )
    bring.add_argument(
        "model",
        type=Path,
        help="a .keras or .h5 file, a state_dict (.pt, .safetensors) or an .onnx file",
    )
    bring.add_argument(
        "--from",
        dest="framework",
        choices=("keras", "torch", "onnx"),
        help="whose it is, where the name of the file does not say it",
    )
    bring.add_argument(
        "--out",
        type=Path,
        default=Path("model.safetensors"),
        metavar="FILE",
        help="the model file to write (default: model.safetensors)",
    )
    bring.add_argument(
        "--step",
        type=_duration,
        default=0.0,
        metavar="TIME",
        help="between ticks, as 30s, 15m or 1h, so that gaps are seen (default: not known)",
    )
    bring.add_argument(
        "--targets",
        type=_number,
        default=1,
        metavar="COUNT",
        help="values of a tick that are forecast, its first ones; the outputs are all of them one"
        " step ahead, then two, and so on (default: 1)",
    )
    bring.add_argument(
        "--window",
        type=_count,
        metavar="TICKS",
        help="run the last so many ticks from a zero state at each tick; 0: the state runs on"
        " (default: as the file says)",
    )
    bring.add_argument(
        "--activation",
        choices=("tanh", "relu"),
        help="of a PyTorch RNN, whose file does not say it (default: tanh)",
    )

    export = command("export", _exchange("export_model"), "write a model for another framework")
    export.add_argument("model", type=Path)
    export.add_argument(
        "--to",
        choices=("onnx", "torch"),
        required=True,
        help="onnx: an .onnx file; torch: a state_dict and a module that loads it",
    )
    export.add_argument("--out", type=Path, required=True, metavar="FILE")

    backtest = command(
        "backtest", _for_people("backtest"), "judge a model on the latest part of a table"
    )
    backtest.add_argument("model", type=Path)
    backtest.add_argument("data", help="a CSV or Parquet file, or the name of a bundled series")
    backtest.add_argument(
        "--last",
        type=_part,
        default=0.2,
        metavar="SHARE",
        help="share of each series, its latest, to forecast (default: 0.2)",
    )
    backtest.add_argument(
        "--levels",
        type=_parts,
        default=(0.2, 0.5, 0.8, 0.95),
        metavar="LIST",
        help="coverages of further intervals to judge; with two or more the CRPS is approximated"
        " from them all; or none (default: 0.2,0.5,0.8,0.95)",
    )
    _engine_arguments(backtest)
    backtest.add_argument(
        "--by-series", action="store_true", help="list the series with the largest errors"
    )
    backtest.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object, nothing else: all measures, by step and by series",
    )
    backtest.add_argument(
        "--html", type=Path, metavar="FILE.html", help="write a report: tables and charts, one file"
    )
    backtest.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the first series too")
    backtest.add_argument(
        "--png", type=Path, metavar="FILE.png", help="draw the charts of the report in one picture"
    )
    backtest.add_argument(
        "--peers",
        type=_names,
        default=(),
        metavar="LIST",
        help="compare with other forecasters too, on the same targets: autoets, autotheta, mstl"
        " (fitted anew at each origin), lstm (fitted once); minutes on long series",
    )
    backtest.add_argument(
        "--peer-origins",
        type=_number,
        default=20,
        metavar="N",
        help="origins of each series at which they are compared (default: 20)",
    )
    _table_arguments(backtest)

    forecast = command(
        "forecast", _forecast, "forecast a table from the end of each of its series, into a table"
    )
    forecast.add_argument("model", type=Path)
    forecast.add_argument("data", help="a CSV or Parquet file, or the name of a bundled series")
    forecast.add_argument(
        "--out", type=Path, metavar="FILE", help="a .csv or .parquet (default: CSV to stdout)"
    )
    forecast.add_argument(
        "--horizon",
        type=_number,
        metavar="STEPS",
        help="steps ahead (default: those of the model); beyond them the model goes on from its own"
        " forecasts",
    )
    forecast.add_argument(
        "--paths",
        type=_number,
        metavar="N",
        help="write N ways in which each series may go on, drawn by lot, instead of forecasts",
    )
    forecast.add_argument(
        "--seed", type=_count, default=0, help="of what is drawn by lot (default: 0)"
    )
    _engine_arguments(forecast)
    _table_arguments(forecast)

    inspect = command("inspect", _for_people("inspect"), "say what a model file holds")
    inspect.add_argument("model", type=Path, nargs="?")
    inspect.add_argument(
        "--kernels",
        action="store_true",
        help="say what the step is compiled for here, and how fast it is for the model, if named",
    )
    inspect.add_argument("--json", action="store_true", help="print one JSON object")

    for name, call, about in (
        ("run", _run, "run the daemon"),
        ("check", _check, "check configuration and model, and start nothing"),
        ("replay", _replay, "run a journal, a checkpoint or a table through the same engine"),
        ("refit", _refit, "fit the model anew to what the journal holds, and keep the better one"),
    ):
        made = command(name, call, about)
        made.add_argument("--config", type=Path, metavar="FILE", help="streamlstm.toml")
        made.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="OPTION=VALUE",
            help="override an option, as --set input.bind=tcp://127.0.0.1:5555",
        )
        if name == "run":
            made.add_argument(
                "--announce",
                action="store_true",
                help="when ready, print one line of JSON that says where it is reached",
            )
        if name == "replay":
            _replay_arguments(made)
        if name == "refit":
            made.add_argument("--dry-run", action="store_true", help="judge, and replace nothing")
            made.add_argument("--json", action="store_true", help="print one JSON object")
            made.add_argument("--parent", type=_count, default=0, help=argparse.SUPPRESS)

    publish = command(
        "publish", _for_people("publish"), "publish a table as ticks, to try a daemon"
    )
    publish.add_argument("data", help="a CSV or Parquet file, or the name of a bundled series")
    publish.add_argument(
        "--model",
        type=Path,
        metavar="FILE",
        help="whose ticks carry more than y: it names the columns",
    )
    publish.add_argument("--to", default=INPUT, metavar="ENDPOINT", help=f"(default: {INPUT})")
    publish.add_argument("--bind", action="store_true", help="listen there; the daemon connects")
    publish.add_argument("--format", choices=FORMATS, default="json", help="(default: json)")
    publish.add_argument(
        "--speed",
        type=_speed,
        default=0.0,
        metavar="N",
        help="times the pace of the timestamps, as 3600 for an hour a second, or 'max' (default)",
    )
    publish.add_argument(
        "--warm",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="send the first share of each series as history, without predictions (default: 0)",
    )
    publish.add_argument(
        "--wait",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="for a daemon to subscribe (default: 10)",
    )
    _key_arguments(publish)
    _table_arguments(publish)

    watch = command("watch", _for_people("watch"), "watch predictions as they come")
    watch.add_argument("endpoint", nargs="?", default=OUTPUT, help=f"(default: {OUTPUT})")
    watch.add_argument("prefix", nargs="?", default="", help="of the series' names (default: all)")
    watch.add_argument("--format", choices=FORMATS, default="json", help="(default: json)")
    watch.add_argument("--json", action="store_true", help="a line of JSON for each prediction")
    watch.add_argument(
        "--snapshot",
        metavar="ENDPOINT",
        help="begin with the latest of each series, from the daemon's snapshot.bind there",
    )
    watch.add_argument("--count", type=_count, default=0, metavar="N", help="leave after N of them")
    watch.add_argument(
        "--wait",
        type=_seconds,
        default=10.0,
        metavar="SECONDS",
        help="for the daemon to answer (default: 10)",
    )
    _key_arguments(watch)

    keys = command("keys", _for_people("keys"), "make a key pair for encrypted connections")
    keys.add_argument("name", help="of the files: NAME.key and NAME.key_secret")
    keys.add_argument(
        "--password",
        action="store_true",
        help="ask for a password instead, and print its hash, for metrics.users; NAME is the user",
    )
    return parser


def _key_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("keys, where the daemon asks for them")
    group.add_argument("--server-key", type=Path, metavar="FILE", help="the daemon's NAME.key")
    group.add_argument("--key", type=Path, metavar="FILE", help="your own NAME.key_secret")


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        help="a journal's folder, a checkpoint (its journal is run on top of it), a CSV or Parquet"
        " file, or the name of a bundled series (default: checkpoint.path)",
    )
    parser.add_argument(
        "--compare",
        metavar="OTHER",
        help="run this too, and say where the two first differ in a bit; exit code 1 if they do",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the forecasts, to .csv or .parquet"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    _table_arguments(parser)


def _engine_arguments(parser: argparse.ArgumentParser) -> None:
    """How the live engine is to run offline."""
    parser.add_argument(
        "--coverage", type=_part, default=0.9, help="of the interval (default: 0.9)"
    )
    parser.add_argument(
        "--no-learning",
        action="store_true",
        help="the model as it stands: series learn nothing from their own errors",
    )


def _table_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to read the table")
    group.add_argument("--id", metavar="COLUMN", help="of the series' names (default: unique_id)")
    group.add_argument("--ds", metavar="COLUMN", help="of the timestamps (default: ds)")
    group.add_argument("--y", metavar="COLUMN", help="of the values (default: y)")
    group.add_argument("--wide", action="store_true", help="one column is one series")
    group.add_argument("--start", metavar="TIME", help="of the first row, if it has no timestamps")
    group.add_argument("--freq", metavar="SPACING", help="with --start: as 30min, 1h, 1D, MS")
    group.add_argument(
        "--timezone",
        default="UTC",
        metavar="ZONE",
        help="of timestamps that carry none, and of the calendar (default: UTC)",
    )


def _input_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what a tick carries beside y: columns, with commas between them, which the model file"
        " names, so that backtest, replay and publish --model find them in other tables"
    )
    for name, about in (
        ("targets", "to be forecast, in the place of y"),
        ("features", "measured with them"),
        ("known", "known ahead, such as holidays or prices: a tick carries those of its horizon"),
        ("static", "what a series is: numbers, or texts as categories"),
    ):
        group.add_argument(f"--{name}", default="", metavar="COLUMNS", help=about)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or more")
    return int(text)


def _number(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to less than 1")
    return share


def _part(text: str) -> float:
    if not (share := _share(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and less than 1")
    return share


def _parts(text: str) -> tuple[float, ...]:
    return () if text in ("", "none") else tuple(map(_part, text.split(",")))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, 0 or more")
    return seconds


def _duration(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d*)?)([smh]?)", text)
    seconds = float(found[1]) * {"m": 60, "h": 3600}.get(found[2], 1) if found else 0.0
    if not seconds:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0; write 90, 90s, 5m or 1h")
    return seconds


def _speed(text: str) -> float:
    if text == "max":
        return 0.0
    try:
        speed = float(text.removesuffix("x"))
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number above 0 nor 'max'")
    return speed
