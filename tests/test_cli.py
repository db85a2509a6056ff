"""The command line as people meet it: help, typos, and errors of one line with the mend."""

import base64
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import zmq
from safetensors.numpy import load_file, save_file

from streamlstm.cli import main
from streamlstm.config import load_config
from streamlstm.web import Users
from tests.models import random_model_file
from tests.pseudo_terminal import terminal
from tests.test_compiled import bound_by_permissions

COMMANDS = (
    "demo", "fit", "backtest", "forecast", "inspect", "run", "check", "replay", "refit", "publish",
    "watch", "keys", "top", "status", "completion",
)  # fmt: skip


class Done(NamedTuple):
    """What became of a command."""

    returncode: int
    stdout: str
    stderr: str


def streamlstm(*arguments: object, code: int = 0, alone: bool = False) -> Done:
    """Run a command as ``python -m streamlstm`` does, in this process: to start one takes a second.

    ``alone``, it has one of its own: where it serves, and logs.
    """
    command = list(map(str, arguments))
    if alone:
        started = subprocess.run(
            [sys.executable, "-m", "streamlstm", *command],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        done = Done(started.returncode, started.stdout, started.stderr)
    else:
        with (
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
        ):
            try:
                left = main(command)
            except SystemExit as leaving:  # of argparse
                left = int(leaving.code or 0)
        done = Done(left, out.getvalue(), err.getvalue())
    assert done.returncode == code, done.stderr
    return done


def complaint(*arguments: object, code: int = 1, alone: bool = False) -> str:
    """The one line on stderr of a command that fails."""
    done = streamlstm(*arguments, code=code, alone=alone)
    beside = re.compile("note: |.* INFO compiling ")  # the latter where none was before
    lines = [line for line in done.stderr.splitlines() if not beside.match(line)]
    assert len(lines) == 1, done.stderr
    assert done.stdout == ""
    return lines[0]


def series_file(folder: Path, n: int = 300, name: str = "data.csv") -> Path:
    """Two hourly series with a daily wave, in the long format."""
    path = folder / name
    rows = ["unique_id,ds,y"]
    for series in ("a", "b"):
        rng = np.random.default_rng(len(series))
        for hour in range(n):
            y = 20 + 5 * np.sin(2 * np.pi * hour / 24) + rng.normal()
            day, rest = divmod(hour, 24)
            rows.append(f"{series},2024-01-{day + 1:02d} {rest:02d}:00:00,{y:.4f}")
    path.write_text("\n".join(rows))
    return path


FIT = ("--horizon", "4", "--updates", "20", "--hidden", "8", "--season", "24")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A table and a model fitted on its first four fifths."""
    folder = tmp_path_factory.mktemp("fitted")
    data, model = series_file(folder), folder / "m.safetensors"
    streamlstm("fit", data, "--out", model, "--holdout", "0.2", *FIT)
    return data, model


def test_help_names_every_command_and_each_explains_itself() -> None:
    text = streamlstm("--help").stdout
    for command in COMMANDS:
        assert command in text
        assert streamlstm(command, "--help").stdout.startswith(f"usage: streamlstm {command}")
    assert streamlstm("--version", alone=True).stdout.strip()[0].isdigit()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["wach"], "did you mean 'watch'?"),
        ([], "required: COMMAND"),
        (["fit"], "required: data"),
        (["run", "--confg", "x"], "did you mean '--config'?"),
        (["fit", "x.csv", "--horizn", "3"], "did you mean '--horizon'?"),
        (["publish", "x.csv", "--speed", "fast"], "'fast' is neither a number above 0 nor 'max'"),
        (["backtest", "m", "x.csv", "--last", "2"], "'2' is not a share"),
        (["backtest", "m", "x.csv", "--last", "0"], "'0' is not a share above 0"),
        (["backtest", "m", "x.csv", "--levels", "0.5,50"], "'50' is not a share from 0"),
        (["fit", "x.csv", "--budget", "5d"], "'5d' is not a time above 0; write 90, 90s, 5m or 1h"),
        (["watch", "--count", "²"], "'²' is not a whole number, 0 or more"),
        (["watch", "--wait", "-1"], "'-1' is not a number of seconds, 0 or more"),
        (["fit", "x.csv", "--horizon", "many"], "--horizon many: "),
        (["fit", "x.csv", "--floor", "low"], "--floor low: "),
        (["run", "--set", "model"], "write --set option=value"),
        (["inspect"], "name a model file, or ask for --kernels"),
        (["run"], "model: missing"),
        (["run", "--config", "none.toml"], "none.toml: no such file"),
        (["run", "--set", "model=m", "--set", "engine.backend=tpu"], "'tpu' is unknown"),
        (
            ["check", "--set", "model=m", "--set", "input.fromat=json"],
            "did you mean 'input.format'?",
        ),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    assert said in complaint(*arguments, code=2)


def test_any_encoding_will_do_and_json_means_the_same_in_each() -> None:
    said = "größe 漢 🙂 \udc80"
    text = json.dumps(said, ensure_ascii=False)
    code = f"from streamlstm import cli; cli._open_ends(); print({text!r})"
    for encoding in ("ascii", "latin-1", "utf-8"):
        printed = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, check=True,
        ).stdout  # fmt: skip
        assert json.loads(printed.decode(encoding)) == said
    with terminal([sys.executable, "-c", code], env={"PYTHONIOENCODING": "ascii"}) as window:
        assert window.until("\n").strip() == '"gr??e ? ? ?"'


def test_closed_ends_lead_nowhere() -> None:
    command = 'exec "$0" -m streamlstm status http://127.0.0.1:9 <&- >&- --json'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    done = subprocess.run(["sh", "-c", f"{command} 2>&-", sys.executable], check=False)
    assert done.returncode == 1


@pytest.mark.parametrize("command", ["inspect", "check", "run", "backtest"])
@pytest.mark.parametrize("case", ["missing", "damaged", "changed"])
def test_a_model_that_cannot_be_used(tmp_path: Path, command: str, case: str) -> None:
    path = tmp_path / "m.safetensors"
    said = "no such model file"
    if case != "missing":
        path = random_model_file(tmp_path)
    if case == "damaged":
        path.write_bytes(path.read_bytes()[:-100])
        said = "no model file, or a damaged one"
    if case == "changed":
        tensors, metadata = load_file(path), None
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        tensors["head.bias"] += 0.5
        save_file(tensors, path, metadata)
        said = "golden trajectory deviates"
    arguments: list[object] = [path]
    if command in ("run", "check"):
        arguments = ["--set", f"model={path}", "--set", "metrics.port=0"]
    if command == "backtest":
        arguments = [path, series_file(tmp_path)]
    assert said in complaint(command, *arguments, alone=command == "run")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a,b,c\n1,2,3\n", "b"),
        ("ds,y\n2024-01-01,1\nnonsense,2\n", "nonsense"),
        ("ds,y\n2024-01-01,1\n2024-01-01,2\n2024-01-02,2\n", "2024-01-01"),
        ("ds,y\n2024-01-02,1\n2024-01-01,2\n", "2024-01-01"),
        ("ds,y\n", "no rows"),
        ("ds,y\n2024-01-01,1\n2024-01-02,2\n", "long enough"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(content)
    assert said in complaint("fit", path, "--out", tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_inspect_kernels_says_what_the_host_gets_and_how_fast_a_model_is(tmp_path: Path) -> None:
    alone = json.loads(streamlstm("inspect", "--kernels", "--json").stdout)
    assert alone.keys() == {"host"}
    assert alone["host"]["lanes"] in (4, 8, 16)
    model = random_model_file(tmp_path)
    report = json.loads(streamlstm("inspect", model, "--kernels", "--json").stdout)
    assert report["million_steps_per_second"].keys() == {"1", "64", "1024"}
    assert all(rate > 0 for rate in report["million_steps_per_second"].values())
    text = streamlstm("inspect", "--kernels", model).stdout
    assert f"{report['host']['lanes']} float32" in text
    assert "million steps/s" in text


def test_fit_inspect_backtest(fitted: tuple[Path, Path]) -> None:
    data, model = fitted
    report = json.loads(streamlstm("inspect", model, "--json").stdout)
    assert report["spec"]["horizon"] == 4
    assert report["bytes_per_series"]["recurrent"] == 2 * 16 * 4
    text = streamlstm("inspect", model).stdout
    assert report["model"] in text
    assert f"{report['bytes_per_series']['total']:,}" in text
    first, naive = json.loads(streamlstm("backtest", model, data, "--json").stdout)["by_step"][:2]
    assert (first["forecast"], naive["forecast"]) == ("model", "last_value")
    assert first["mae"] < naive["mae"]
    said = streamlstm("backtest", model, data, "--by-series", "--levels", "none").stdout
    assert "within their 90% interval" in said
    assert "the worst 2 of 2 series" in said


def rich_file(folder: Path, name: str = "rich.csv", without: str = "") -> Path:
    """Two hourly series whose load is moved by nothing but holidays, told in the long format."""
    rng = np.random.default_rng(0)
    rows = []
    for series, size, kind in (("a", 10, "shop"), ("b", 30, "office")):
        for hour in range(300):
            day, rest = divmod(hour, 24)
            holiday = int(rng.random() < 0.3)
            rows.append({
                "unique_id": series, "ds": f"2024-01-{day + 1:02d} {rest:02d}:00:00",
                "load": round(size + 8 * holiday + 0.2 * rng.normal(), 3),
                "temp": round(rng.normal(15, 3), 3), "wind": round(rng.normal(5, 1), 3),
                "holiday": holiday, "size": size, "type": kind,
            })  # fmt: skip
    path = folder / name
    names = [name for name in rows[0] if name != without]
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    path.write_text("\n".join(lines))
    return path


def test_a_model_of_more_than_y_finds_its_columns_everywhere(tmp_path: Path) -> None:
    data, model = rich_file(tmp_path), tmp_path / "m.safetensors"
    named = ("--targets", "load", "--features", "wind", "--known", "holiday", "--targets", "temp")
    fit = streamlstm(
        "fit", data, "--out", model, "--holdout", "0.2", *named, "--static", "size,type",
        "--elapsed", "--floor", "0", *FIT[:-2], "--season", "0",
    ).stderr  # fmt: skip
    assert re.search(r"load 0\.\d+ at 1.*; temp [01]\.\d+ at 1", fit)

    said = json.loads(streamlstm("inspect", model, "--json").stdout)["spec"]
    assert [(each["name"], each["role"]) for each in said["roles"]] == [
        ("load", "target"), ("temp", "target"), ("wind", "measured"), ("holiday", "known"),
        ("size", "number"), ("type", "category"),
    ]  # fmt: skip
    assert (said["elapsed_ns"], said["floor"]) == (3_600_000_000_000, 0)
    text = " ".join(streamlstm("inspect", model).stdout.split())
    for part in ("load (target)", "holiday (known, 4 steps ahead", "type (one of office, shop)"):
        assert part in text

    found = json.loads(streamlstm("backtest", model, data, "--json", "--levels", "none").stdout)
    mae = {(row["series"], row["forecast"]): row["mae"] for row in found["by_series"]}
    assert {name for name, _ in mae} == {"a/load", "a/temp", "b/load", "b/temp"}
    said = streamlstm("backtest", model, data, "--levels", "none").stdout
    assert all(f"{name}: mean absolute error" in said for name in ("load", "temp"))
    told = {row["target"]: row["mae"] for row in found["by_target"] if row["forecast"] == "model"}
    assert 0 < told["load"] != told["temp"] > 0
    for name in ("a/load", "b/load"):
        assert mae[name, "model"] < 0.3 * mae[name, "last_value"]
    few = rich_file(tmp_path, "few.csv", without="wind")
    missing = "has no column 'wind' (an input of the model)"
    assert missing in complaint("backtest", model, few)
    assert missing in complaint("publish", few, "--model", model)
    assert missing in complaint("replay", few, "--set", f"model={model}")
    replayed = json.loads(streamlstm("replay", data, "--set", f"model={model}", "--json").stdout)
    assert (replayed["ticks"], replayed["dropped"]) == (600, {})

    with zmq.Context() as context, context.socket(zmq.SUB) as daemon:
        daemon.subscribe(b"")
        daemon.rcvtimeo = 60_000
        to = f"tcp://127.0.0.1:{daemon.bind_to_random_port('tcp://127.0.0.1')}"
        command = ["publish", str(data), "--model", str(model), "--to", to, "--wait", "60"]
        with subprocess.Popen([sys.executable, "-m", "streamlstm", *command]) as publisher:
            ticks = [daemon.recv_multipart() for _ in range(600)]
        assert publisher.returncode == 0
    series, payload = ticks[0]
    row = data.read_text().splitlines()[1].split(",")
    ahead = data.read_text().splitlines()[5].split(",")[5]
    expected = [*map(float, row[2:5]), float(ahead), 10.0, 1.0]  # a shop is the second
    assert (series, json.loads(payload)["values"]) == (b"a", expected)


def test_constant_short_and_gappy_series_are_taken_or_told(tmp_path: Path) -> None:
    data = series_file(tmp_path)
    lines = data.read_text().splitlines()
    lines += [f"flat,2024-02-{1 + h // 24:02d} {h % 24:02d}:00:00,7" for h in range(200)]
    lines += ["brief,2024-03-01 00:00:00,1", "brief,2024-03-01 01:00:00,2"]
    lines[10] = "a,2024-01-01 09:00:00,"
    data.write_text("\n".join(lines))
    done = streamlstm("fit", data, "--out", tmp_path / "m.safetensors", *FIT)
    assert "1 of 4 series skipped" in done.stderr
    assert "missing" in done.stderr
    scores = streamlstm("backtest", tmp_path / "m.safetensors", data, "--json").stdout
    assert np.isfinite(json.loads(scores)["by_step"][0]["mae"])
    flat = tmp_path / "flat.csv"
    flat.write_text("\n".join([lines[0], *(line for line in lines if line.startswith("flat"))]))
    judged = streamlstm("backtest", tmp_path / "m.safetensors", flat)
    assert "nan" not in judged.stdout
    assert "the figures flatter it; judge it by later ones" in " ".join(judged.stderr.split())


def test_check_says_that_all_is_well(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    _, model = fitted
    config = tmp_path / "streamlstm.toml"
    config.write_text(f'model = "{model}"\n')
    assert "computes what it says" in streamlstm("check", "--config", config).stdout


def test_check_warns_of_what_is_open_to_others(fitted: tuple[Path, Path]) -> None:
    _, model = fitted
    done = streamlstm("check", "--set", f"model={model}", "--set", "input.bind=tcp://*:5555")
    assert "computes what it says" in done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("streamlstm check: warning: input.bind: tcp://*:5555 is open to anyone")


def test_keys_are_made_and_it_is_said_what_to_put_where(tmp_path: Path) -> None:
    said = streamlstm("keys", tmp_path / "server").stdout
    for word in (f"--server-key {tmp_path}/server.key", "security.secret_key =", "--key "):
        assert word in said
    assert (tmp_path / "server.key_secret").stat().st_mode & 0o777 == 0o600
    assert "is there already" in complaint("keys", tmp_path / "server")
    assert "choose a folder" in complaint("keys", tmp_path / "no" / "server")


def test_the_hash_of_a_password_is_a_line_for_the_file(tmp_path: Path) -> None:
    def made(password: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "streamlstm", "keys", "--password", "prometheus"],
            input=password, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    config = tmp_path / "streamlstm.toml"
    config.write_text(f'model = "m"\n[metrics.users]\n{made("secret").stdout}')
    users = Users(load_config(config, environ={}).metrics.users)
    said = base64.b64encode(b"prometheus:secret")
    request = b"GET / HTTP/1.1\r\nAuthorization: Basic %s\r\n\r\n" % said
    assert users.admit(request) == 200
    assert made("\n").returncode == 2


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("security.secret_key=none.key_secret", "streamlstm keys"),
        ('metrics.users={"a": "secret"}', "streamlstm keys --password a"),
    ],
)
def test_check_tells_what_keys_are_of_no_use(
    fitted: tuple[Path, Path], option: str, said: str
) -> None:
    assert said in complaint("check", "--set", f"model={fitted[1]}", "--set", option)


@pytest.mark.parametrize("command", [("publish", "x.csv"), ("watch",)])
def test_a_key_that_is_not_there(tmp_path: Path, command: tuple[str, ...]) -> None:
    if command[0] == "publish":
        command = ("publish", str(series_file(tmp_path)))
    assert "none.key: no such key file" in complaint(*command, "--server-key", "none.key")


def test_pictures_need_a_place_to_go(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    data, model = fitted
    drawn = tmp_path / "f.png"
    written = tmp_path / "r.html"
    streamlstm("backtest", model, data, "--plot", drawn, "--html", written)
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert written.read_text().endswith("</html>\n")


@pytest.mark.parametrize(
    ("flag", "name", "said"),
    [
        ("--plot", "f.jpg", "name a file that ends in .png"),
        ("--html", "no/r.html", "its folder does not exist; make it"),
        ("--html", "folder.html", "is a folder; name a file in it"),
    ],
)
def test_where_nothing_can_be_drawn_is_told_before_the_work(
    tmp_path: Path, flag: str, name: str, said: str
) -> None:
    (tmp_path / "folder.html").mkdir()
    out = tmp_path / name
    line = complaint("backtest", "no.safetensors", "no.csv", flag, out, code=2)
    assert line == f"streamlstm backtest: {flag} {out}: {said}"


def test_paths_and_notes_are_no_markup(tmp_path: Path) -> None:
    folder = tmp_path / "[bold]x"
    folder.mkdir()
    data = series_file(folder)
    data.write_text(data.read_text().replace(",y\n", ",[bold]\n"))
    out = folder / "[red]m.safetensors"
    said = streamlstm("fit", data, "--out", out, *FIT).stderr
    assert f"{out}: model " in said
    assert "column '[bold]' taken as the values" in said
    assert "model" in streamlstm("inspect", out).stdout


def test_series_that_cannot_be_judged_are_counted(
    fitted: tuple[Path, Path], tmp_path: Path
) -> None:
    data, model = fitted
    longer, brief = tmp_path / "longer.csv", "brief,2024-03-01 00:00:00,1\n"
    longer.write_text(f"{data.read_text()}\n{brief}none,2024-03-01 00:00:00,\n")
    done = streamlstm("backtest", model, longer, "--json")
    found = json.loads(done.stdout)
    as_before = json.loads(streamlstm("backtest", model, data, "--json").stdout)
    assert found == as_before | {"data": str(longer), "skipped": 1}
    assert "1 of 3 series skipped" in streamlstm("backtest", model, longer).stderr
    longer.write_text(f"unique_id,ds,y\n{brief}")
    assert "no series is long enough" in complaint("backtest", model, longer)


def test_what_is_not_known_is_null_in_json(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    _, model = fitted
    flat = tmp_path / "flat.csv"
    days = (divmod(hour, 24) for hour in range(200))
    flat.write_text("ds,y\n" + "".join(f"2024-01-{d + 1:02d} {h:02d}:00,7\n" for d, h in days))
    done = streamlstm("backtest", model, flat, "--json")
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert {record["mase"] for record in found["by_step"]} == {None}
    assert "Warning" not in done.stderr


@pytest.mark.parametrize("out", [".", "/proc/m.safetensors", "no/such/m.safetensors"])
def test_where_no_model_can_be_written_is_told_before_the_fit(tmp_path: Path, out: str) -> None:
    assert f"--out {out}: " in complaint("fit", tmp_path / "unread.csv", "--out", out, code=2)


def test_what_is_read_is_not_written_over(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    data = series_file(tmp_path)
    before = data.read_bytes()
    said = "is read from; name another file"
    assert said in complaint("fit", data, "--out", data, code=2)
    assert said in complaint("forecast", fitted[1], data, "--out", data, code=2)
    assert said in complaint("export", fitted[1], "--to", "torch", "--out", fitted[1], code=2)
    assert data.read_bytes() == before


def test_what_a_fit_says_is_next_can_be_done(tmp_path: Path) -> None:
    data, out = series_file(tmp_path), tmp_path / "m.safetensors"
    data.write_text(data.read_text().replace("unique_id,ds,y", "which one,when,load"))
    how = ["--id", "which one", "--y", "load", "--timezone", "Europe/Berlin"]
    said = streamlstm("fit", data, "--out", out, *FIT, *how).stderr
    (line,) = (line for line in said.splitlines() if line.startswith("next: "))
    command = line.removeprefix("next: streamlstm ").partition(", or ")[0]
    assert shlex.split(command)[3:] == ["--id", "which one", "--y", "load"]
    asked = json.loads(streamlstm(*shlex.split(command), "--json").stdout)
    zoned = streamlstm(*shlex.split(command), "--json", "--timezone", "Europe/Berlin").stdout
    assert asked == json.loads(zoned)


@pytest.mark.parametrize("none", ["", "none"])
def test_lags_and_calendar_may_be_none(tmp_path: Path, none: str) -> None:
    data, out = series_file(tmp_path), tmp_path / "m.safetensors"
    streamlstm("fit", data, "--out", out, *FIT, "--lags", none, "--calendar", none)
    spec = json.loads(streamlstm("inspect", out, "--json").stdout)["spec"]
    assert (spec["lags"], spec["calendar"]) == ([], [])


def test_a_misspelt_name_of_a_bundled_series() -> None:
    said = complaint("demo", "--data", "wether")
    assert said.endswith("did you mean the bundled series 'weather'?")
    said = complaint("demo", "--data", "taxi")
    known = "electricity, weather, sea, stock and water"
    assert said.endswith(f"taxi: no such file, nor such a bundled series; there are {known}")


def test_a_reader_that_has_seen_enough_is_no_error(fitted: tuple[Path, Path]) -> None:
    _, model = fitted
    for flags in ([], ["--json"]):
        read, write = os.pipe()
        os.close(read)  # before the first line: the writer meets it for certain
        done = subprocess.run(
            [sys.executable, "-m", "streamlstm", "inspect", str(model), *flags],
            stdout=write, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")


def test_what_the_user_may_not_have_is_one_line_that_says_to_let_it_in(tmp_path: Path) -> None:
    """Model, configuration, a folder of keys, that of a checkpoint, one on the way to it."""
    model, config = random_model_file(tmp_path), tmp_path / "c.toml"
    config.write_text("")
    for name in ("keys", "state", "sound"):
        (tmp_path / name).mkdir()
    sound = random_model_file(tmp_path / "sound")
    for path in (model, config, tmp_path / "keys", tmp_path / "state"):
        path.chmod(0)
    (tmp_path / "sound").chmod(0o500)
    check = ["check", "--set", f"model={sound}", "--set"]
    for command in (
        ["check", "--set", f"model={model}"],
        ["check", "--config", config],
        ["keys", tmp_path / "keys" / "server"],
        [*check, f"checkpoint.path={tmp_path / 'sound' / 'state'}"],
        [*check, f"checkpoint.path={tmp_path / 'state' / 'folder' / 'state'}"],
    ):
        done = subprocess.run(
            [*bound_by_permissions(), sys.executable, "-m", "streamlstm", *map(str, command)],
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        (line,) = done.stderr.splitlines()
        assert "Permission denied" in line or "may not be written to" in line, line
        assert "; let user " in line, line
