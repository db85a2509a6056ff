"""``streamlstm ...``: the command line. Errors are one line with the mend; 2 for usage, else 1.

Each command imports what it needs when it is called, so that the daemon starts without the
libraries of those that people look at.
"""

import argparse
import codecs
import difflib
import importlib
import io
import json
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn, get_args

from streamlstm import arguments, compiled
from streamlstm.config import INPUT, OUTPUT, Config, ConfigError, Format, Metrics, load_config
from streamlstm.files import mend_of
from streamlstm.fit_options import FitOptions

FORMATS = get_args(Format)
METRICS = f"http://{Metrics().host}:{Metrics().port}"
_TABLE = "a CSV or Parquet file, or the name of a bundled series"


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
    _open_ends()
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


def _open_ends() -> None:
    """Have all three, a closed one leading nowhere; stdout takes what its encoding lacks.

    In a terminal that becomes a question mark, as wide as what it stands for, elsewhere what JSON
    has for it, so that a line of JSON says the same in any encoding.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error("json", _as_json)
        sys.stdout.reconfigure(errors="replace" if sys.stdout.isatty() else "json")


def _as_json(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _fail(options: argparse.Namespace, error: Exception, code: int) -> int:
    message = str(error)
    if isinstance(error, OSError) and error.filename and error.strerror:
        mend = mend_of(error, "")
        message = f"{error.filename}: {error.strerror}{'; ' * bool(mend)}{mend}"
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
    from streamlstm import ahead, logs, service

    config = _load(options)
    logs.to_stderr(config.service.log_level)
    ahead.share(config, serving=True)
    return service.run(config, announce=options.announce)


def _check(options: argparse.Namespace) -> int:
    from streamlstm import ahead, service

    config = _load(options)
    ahead.share(config)
    found, doubtful = service.check(config)
    for each in doubtful:
        print(f"streamlstm check: warning: {each}", file=sys.stderr)
    print(found, flush=True)
    if options.compile:
        ahead.compile_all(config)
        print("compiled: all that 'streamlstm run' needs here")
    return 0


def _replay(options: argparse.Namespace) -> int:
    from streamlstm import offline

    return offline.command(_load(options), options)


def _refit(options: argparse.Namespace) -> int:
    from streamlstm import refit

    return refit.command(_load(options), options)


def _of(module: str, name: str) -> Callable[[argparse.Namespace], int | None]:
    def call(options: argparse.Namespace) -> int | None:
        room = importlib.import_module(f"streamlstm.{module}")
        command: Callable[[argparse.Namespace], int | None] = getattr(room, name)
        return command(options)

    return call


def _completion(options: argparse.Namespace) -> None:
    from streamlstm import completion

    print(completion.script(_parser(), options.shell), end="")


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

    demo = command("demo", _of("commands", "demo"), "see it all at work on real data, in a minute")
    demo.add_argument(
        "--data",
        type=arguments.table,
        default="electricity",
        metavar="NAME",
        help="electricity (default), weather, sea, stock, water, or a CSV or Parquet file",
    )
    demo.add_argument(
        "--season", type=arguments.count, metavar="STEPS", help="of your file; 0: none"
    )
    _table_arguments(demo)
    demo.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    demo.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the forecasts too")
    demo.add_argument(
        "--keep-running",
        action="store_true",
        help="leave the daemon up, and ticks coming, until Ctrl-C",
    )

    fit = command("fit", _of("commands", "fit"), "fit a model to a table of series")
    fit.add_argument("data", type=arguments.table, help=_TABLE)
    fit.add_argument(
        "--out",
        type=Path,
        default=Path("model.safetensors"),
        metavar="FILE",
        help="the model file to write (default: model.safetensors)",
    )
    fit.add_argument(
        "--holdout",
        type=arguments.share,
        default=0.0,
        metavar="SHARE",
        help="leave the latest share of each series unseen, to be backtested on (default: 0)",
    )
    fit.add_argument(
        "--budget",
        type=arguments.duration,
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
        "import", _of("exchange", "import_model"), "make a model of one from Keras, PyTorch or ONNX"
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
        type=arguments.duration,
        default=0.0,
        metavar="TIME",
        help="between ticks, as 30s, 15m or 1h, so that gaps are seen (default: not known)",
    )
    bring.add_argument(
        "--targets",
        type=arguments.number,
        default=1,
        metavar="COUNT",
        help="values of a tick that are forecast, its first ones; the outputs are all of them one"
        " step ahead, then two, and so on (default: 1)",
    )
    bring.add_argument(
        "--window",
        type=arguments.count,
        metavar="TICKS",
        help="run the last so many ticks from a zero state at each tick; 0: the state runs on"
        " (default: as the file says)",
    )
    bring.add_argument(
        "--activation",
        choices=("tanh", "relu"),
        help="of a PyTorch RNN, whose file does not say it (default: tanh)",
    )

    export = command(
        "export", _of("exchange", "export_model"), "write a model for another framework"
    )
    export.add_argument("model", type=Path)
    export.add_argument(
        "--to",
        choices=("onnx", "torch"),
        required=True,
        help="onnx: an .onnx file; torch: a state_dict and a module that loads it",
    )
    export.add_argument("--out", type=Path, required=True, metavar="FILE")

    backtest = command(
        "backtest", _of("commands", "backtest"), "judge a model on the latest part of a table"
    )
    backtest.add_argument("model", type=Path)
    backtest.add_argument("data", type=arguments.table, help=_TABLE)
    backtest.add_argument(
        "--last",
        type=arguments.part,
        default=0.2,
        metavar="SHARE",
        help="share of each series, its latest, to forecast (default: 0.2)",
    )
    backtest.add_argument(
        "--levels",
        type=arguments.parts,
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
        type=arguments.names,
        default=(),
        metavar="LIST",
        help="compare with other forecasters too, on the same targets: autoets, autotheta, mstl"
        " (fitted anew at each origin), lstm (fitted once); minutes on long series",
    )
    backtest.add_argument(
        "--peer-origins",
        type=arguments.number,
        default=20,
        metavar="N",
        help="origins of each series at which they are compared (default: 20)",
    )
    _table_arguments(backtest)

    forecast = command(
        "forecast",
        _of("forecast", "command"),
        "forecast a table from the end of each of its series, into a table",
    )
    forecast.add_argument("model", type=Path)
    forecast.add_argument("data", type=arguments.table, help=_TABLE)
    forecast.add_argument(
        "--out", type=Path, metavar="FILE", help="a .csv or .parquet (default: CSV to stdout)"
    )
    forecast.add_argument(
        "--horizon",
        type=arguments.number,
        metavar="STEPS",
        help="steps ahead (default: those of the model); beyond them the model goes on from its own"
        " forecasts",
    )
    forecast.add_argument(
        "--paths",
        type=arguments.number,
        metavar="N",
        help="write N ways in which each series may go on, drawn by lot, instead of forecasts",
    )
    forecast.add_argument(
        "--seed", type=arguments.count, default=0, help="of what is drawn by lot (default: 0)"
    )
    _engine_arguments(forecast)
    _table_arguments(forecast)

    inspect = command("inspect", _of("commands", "inspect"), "say what a model file holds")
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
        if name == "check":
            made.add_argument(
                "--compile",
                action="store_true",
                help="compile all that the daemon needs too, so that its start is a quick one",
            )
        if name == "replay":
            _replay_arguments(made)
        if name == "refit":
            made.add_argument("--dry-run", action="store_true", help="judge, and replace nothing")
            made.add_argument("--json", action="store_true", help="print one JSON object")
            made.add_argument("--parent", type=arguments.count, default=0, help=argparse.SUPPRESS)

    publish = command(
        "publish", _of("publishing", "publish"), "publish a table as ticks, to try a daemon"
    )
    publish.add_argument("data", type=arguments.table, help=_TABLE)
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
        type=arguments.speed,
        default=0.0,
        metavar="N",
        help="times the pace of the timestamps, as 3600 for an hour a second, or 'max' (default)",
    )
    publish.add_argument(
        "--warm",
        type=arguments.share,
        default=0.0,
        metavar="SHARE",
        help="send the first share of each series as history, without predictions (default: 0)",
    )
    publish.add_argument(
        "--wait",
        type=arguments.seconds,
        default=10.0,
        metavar="SECONDS",
        help="for a daemon to subscribe (default: 10)",
    )
    publish.add_argument(
        "--json", action="store_true", help="print one JSON object at the end, nothing else"
    )
    _key_arguments(publish)
    _table_arguments(publish)

    watch = command("watch", _of("watching", "watch"), "watch predictions as they come")
    watch.add_argument("endpoint", nargs="?", default=OUTPUT, help=f"(default: {OUTPUT})")
    watch.add_argument("prefix", nargs="?", default="", help="of the series' names (default: all)")
    watch.add_argument("--format", choices=FORMATS, default="json", help="(default: json)")
    watch.add_argument("--json", action="store_true", help="a line of JSON for each prediction")
    watch.add_argument(
        "--snapshot",
        metavar="ENDPOINT",
        help="begin with the latest of each series, from the daemon's snapshot.bind there",
    )
    watch.add_argument(
        "--count", type=arguments.count, default=0, metavar="N", help="leave after N of them"
    )
    watch.add_argument(
        "--wait",
        type=arguments.seconds,
        default=10.0,
        metavar="SECONDS",
        help="for the daemon to answer (default: 10)",
    )
    _key_arguments(watch)

    top = command("top", _of("top", "top"), "watch a daemon's vital signs, from its metrics")
    status = command(
        "status", _of("top", "status"), "say how a daemon is; exit code 0: it is ready"
    )
    for made, about in ((top, "a line of JSON a second"), (status, "print one JSON object")):
        made.add_argument("url", nargs="?", default=METRICS, help=f"(default: {METRICS})")
        made.add_argument("--json", action="store_true", help=about)
        _metrics_arguments(made)
    top.add_argument("--once", action="store_true", help="look for a second, tell it, and leave")

    keys = command("keys", _of("commands", "keys"), "make a key pair for encrypted connections")
    keys.add_argument("name", help="of the files: NAME.key and NAME.key_secret")
    keys.add_argument(
        "--password",
        action="store_true",
        help="ask for a password instead, and print its hash, for metrics.users; NAME is the user",
    )

    completion = command(
        "completion", _completion, "print what completes commands and options in a shell"
    )
    completion.add_argument(
        "shell",
        choices=("bash", "zsh", "fish"),
        help='in bash: eval "$(streamlstm completion bash)"; in zsh the same, after compinit;'
        " in fish: streamlstm completion fish | source",
    )
    return parser


def _metrics_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("where the daemon asks for a password, or speaks TLS")
    group.add_argument(
        "--user",
        metavar="NAME",
        help="one of metrics.users; the password is asked for, or that of the environment variable"
        " METRICS_PASSWORD",
    )
    group.add_argument("--password-file", type=Path, metavar="FILE", help="with the password")
    group.add_argument("--ca", type=Path, metavar="FILE", help="PEM file of its authority")
    group.add_argument("--cert", type=Path, metavar="FILE", help="PEM file of your certificate")
    group.add_argument("--cert-key", type=Path, metavar="FILE", help="its key, if that is apart")


def _key_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("keys, where the daemon asks for them")
    group.add_argument("--server-key", type=Path, metavar="FILE", help="the daemon's NAME.key")
    group.add_argument("--key", type=Path, metavar="FILE", help="your own NAME.key_secret")


def _replay_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        nargs="?",
        type=arguments.table,
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
        "--coverage", type=arguments.part, default=0.9, help="of the interval (default: 0.9)"
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
        metavar="ZONE",
        help="of timestamps that carry none, and of the calendar (default: the model's, else UTC)",
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
        group.add_argument(
            f"--{name}", action=arguments.Joined, default="", metavar="COLUMNS", help=about
        )
