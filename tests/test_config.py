import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from streamlstm.config import (
    PREFIX,
    Config,
    ConfigError,
    exposures,
    load_config,
    options,
    without_effect,
)


def write(folder: Path, text: str) -> Path:
    path = folder / "streamlstm.toml"
    path.write_text(text)
    return path


def test_a_model_is_all_that_must_be_said(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, 'model = "m"'), environ={})
    assert config == Config(model=Path("m"))
    assert config.input.bind == ("tcp://127.0.0.1:5555",)
    assert config.metrics.host == "127.0.0.1"


def test_flags_go_before_environment_before_file_before_default(tmp_path: Path) -> None:
    path = write(
        tmp_path, 'model = "m"\n[metrics]\nhost = "a"\nport = 1\n[engine]\nmax_series = 5\n'
    )
    environ = {
        "STREAMLSTM_METRICS__PORT": "2",
        "STREAMLSTM_METRICS__HOST": "b",
        "STREAMLSTM_INTERVAL__COVERAGE": "0.5",
        "NUMBA_CACHE_DIR": "/x",
        "NOTIFY_SOCKET": "@y",
    }
    config = load_config(path, {"metrics.host": "c", "metrics.enabled": "false"}, environ)
    assert (config.metrics.host, config.metrics.port, config.metrics.enabled) == ("c", 2, False)
    assert (config.engine.max_series, config.engine.max_batch) == (5, 1024)
    assert config.interval.coverage == (0.5,)


def test_without_a_file() -> None:
    assert load_config(None, {"model": "m"}, {}).model == Path("m")
    assert load_config(None, {}, {"STREAMLSTM_MODEL": "m"}).model == Path("m")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("tcp://a:1", ("tcp://a:1",)),
        ("tcp://a:1,tcp://b:2", ("tcp://a:1", "tcp://b:2")),
        ('["tcp://a:1", "ipc:///x,y"]', ("tcp://a:1", "ipc:///x,y")),
        ("[]", ()),
    ],
)
def test_lists_as_text(text: str, parts: tuple[str, ...]) -> None:
    config = load_config(
        None, {"model": "m", "output.connect": text}, {"STREAMLSTM_INPUT__TOPICS": text}
    )
    assert config.output.connect == config.input.topics == parts


@pytest.mark.parametrize(
    ("said", "text", "coverages"),
    [
        ("0.9", "0.9", (0.9,)),
        ("[0.9]", "[0.9]", (0.9,)),
        ("[0.9, 0.5, 0.99]", "0.9,0.5,0.99", (0.9, 0.5, 0.99)),
        ("'0.5, 0.9'", "[0.5, 0.9]", (0.5, 0.9)),
        ("0", "0", ()),
        ("[]", "", ()),
    ],
)
def test_one_coverage_or_several(
    tmp_path: Path, said: str, text: str, coverages: tuple[float, ...]
) -> None:
    path = write(tmp_path, f'model = "m"\n[interval]\ncoverage = {said}\n')
    assert load_config(path, environ={}).interval.coverage == coverages
    environ = {"STREAMLSTM_INTERVAL__COVERAGE": text}
    for sources in (({"interval.coverage": text}, {}), ({}, environ)):
        assert load_config(path, *sources).interval.coverage == coverages
    many = ",".join(f"0.{k}" for k in range(1, 10))
    with pytest.raises(ConfigError, match=r"name 8 at most, each of them once"):
        load_config(path, {"interval.coverage": many}, {})


def test_connecting_leaves_out_the_default_bind(tmp_path: Path) -> None:
    text = 'model = "m"\n[input]\nconnect = ["tcp://feed:1"]\n'
    assert load_config(write(tmp_path, text), environ={}).input.bind == ()
    both = load_config(write(tmp_path, text), {"input.bind": "tcp://127.0.0.1:7"}, {})
    assert both.input.bind == ("tcp://127.0.0.1:7",)
    flagged = load_config(None, {"model": "m", "output.connect": "tcp://proxy:1"}, {})
    assert (flagged.output.bind, flagged.input.bind) == ((), ("tcp://127.0.0.1:5555",))


def test_an_empty_checkpoint_path_is_none(tmp_path: Path) -> None:
    text = 'model = "m"\n[checkpoint]\npath = ""\n'
    assert load_config(write(tmp_path, text), environ={}).checkpoint.path is None


def test_every_option_is_described() -> None:
    assert all(info.description for _, info in options())
    assert {"model", "input.bind", "service.log_level"} < {name for name, _ in options()}


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValidationError):
        Config(model=Path("m")).engine.threads = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "model: missing"),
        ('model = "m', "not valid TOML"),
        ('modl = "m"', "modl: unknown option; did you mean 'model'?"),
        ('model = "m"\n[input]\nbnd = []', "input.bnd: unknown option; did you mean 'input.bind'?"),
        ('model = "m"\n[inputs]\nbind = []', "inputs: unknown option; did you mean 'input'?"),
        ('model = "m"\nport = 1', "port: unknown option; did you mean 'metrics.port'?"),
        ('model = "m"\n[interval]\nxyz = 1', "xyz: unknown option; there is: interval.coverage"),
        ('model = "m"\n[engine]\nbackend = "tpu"', "backend: 'tpu' is unknown; there is: 'cpu'"),
        ('model = "m"\n[input]\nformat = "xml"', "there is: 'json', 'msgpack', 'binary' or"),
        ('model = "m"\n[metrics]\nport = 70000', "metrics.port: Input should be less than"),
        ('model = "m"\n[interval]\ncoverage = 1.0', "interval.coverage: 1.0 does not lie between"),
        ('model = "m"\n[interval]\ncoverage = [0.9, 0]', "interval.coverage: 0.0 does not lie"),
        ('model = "m"\n[interval]\ncoverage = [0.9, 0.9]', "interval.coverage: 0.9, 0.9: name 8"),
        ('model = "m"\n[interval]\ncoverage = "wide"', "interval.coverage.0: Input should be"),
        ('model = "m"\n[interval]\ncoverage = nan', "interval.coverage.0: "),
        ('model = "m"\n[input]\nbind = []', "input.bind and input.connect are both empty"),
        ('model = "m"\n[input]\nbind = [1]', "input.bind.0: "),
        ('model = "m"\ninput = 3', "input: "),
        ('model = "m"\n"a\\n\\u001b[2Jb" = 3', "a\\n\\x1b[2Jb: unknown option"),
        ('model = "m"\nx = ' + "9" * 5000, "not valid TOML: "),
        ('model = "m"\nx = ' + "[" * 5000, "not valid TOML: "),
    ],
)  # fmt: skip
def test_an_error_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path, environ={})
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("overrides", "environ", "said"),
    [
        ({}, {"STREAMLSTM_INPUT__BND": "x"}, "STREAMLSTM_INPUT__BND: input.bnd: unknown option; "),
        ({}, {"STREAMLSTM_CONFIG": "x"}, "STREAMLSTM_CONFIG: config: unknown option"),
        ({}, {"STREAMLSTM_METRICS__PORT": "x"}, "STREAMLSTM_METRICS__PORT: metrics.port: "),
        ({}, {"STREAMLSTM_METRICS__PORT__X": "1"}, "STREAMLSTM_METRICS__PORT__X: metrics.port: "),
        ({}, {"STREAMLSTM_INPUT__BIND": '["a'}, "STREAMLSTM_INPUT__BIND: input.bind: "),
        ({}, {"STREAMLSTM_INPUT__BIND": "[" * 9999}, "STREAMLSTM_INPUT__BIND: input.bind: nested"),
        ({}, {"STREAMLSTM_METRICS__USERS": '{"a":' * 9999}, "STREAMLSTM_METRICS__USERS: "),
        ({"input.bind": "tcp://*:1,x"}, {}, "--set input.bind: input.bind: x: an endpoint is tcp:"),
        ({"snapshot.bind": ""}, {"STREAMLSTM_OUTPUT__CONNECT": "http://a:1"},
         "STREAMLSTM_OUTPUT__CONNECT: output.connect: http://a:1: an endpoint is tcp://address:"),
        ({"metrics.port": True}, {}, "--set metrics.port: metrics.port: true is neither a number"),
        ({"engine.thread": "1"}, {}, "--set engine.thread: engine.thread: unknown option; did you"),
        ({"engine": "1"}, {}, "--set engine: engine: "),
        ({"": "1"}, {}, "--set : "),
    ],
)  # fmt: skip
def test_an_error_names_the_variable_or_flag_it_comes_from(
    overrides: dict[str, str], environ: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, {"model": "m"} | overrides, environ)
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_any_free_port_may_be_asked_for_again_and_again() -> None:
    free = dict.fromkeys(("input.bind", "output.bind", "snapshot.bind"), "tcp://127.0.0.1:*")
    load_config(None, {"model": "m", "metrics.port": "0", **free}, {})
    load_config(None, {"model": "m", "metrics.port": "5555", "metrics.enabled": "false"}, {})


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; deploy/streamlstm\.toml is one to copy"):
        load_config(tmp_path / "nothing.toml", environ={})


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "streamlstm.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path, environ={})
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path, environ={})


def test_the_environment_is_that_of_the_process_unless_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(f"{PREFIX}MODEL", "from-environment")
    assert load_config().model == Path("from-environment")


def exposed(**options: object) -> list[str]:
    given = {name.replace("__", "."): value for name, value in options.items()}
    return [*exposures(load_config(None, {"model": "m", **given}, environ={}))]


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:5555", "tcp://127.3.2.1:*", "tcp://localhost:1", "tcp://[::1]:5555",
     "tcp://lo:5555", "ipc:///run/x", "ipc://@abstract", "inproc://x"],
)  # fmt: skip
def test_nobody_is_warned_of_what_stays_on_the_machine(endpoint: str) -> None:
    assert exposed() == []
    assert exposed(input__bind=endpoint, output__connect=endpoint) == []


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://*:5555", "tcp://0.0.0.0:5555", "tcp://10.0.0.7:5555", "tcp://[::]:5555",
     "tcp://eth0:5555", "tcp://feed.example:5555", "tcp://127.0.0.1.example:1"],
)  # fmt: skip
def test_what_is_open_beyond_the_machine_is_warned_of(endpoint: str) -> None:
    (bound,) = exposed(output__bind=endpoint)
    assert bound.startswith(f"output.bind: {endpoint} is open to anyone")
    assert exposed(output__bind=endpoint, security__secret_key="k") == []
    (reached,) = exposed(input__connect=endpoint)
    assert reached.startswith(f"input.connect: {endpoint} is beyond this machine")
    keys = f'{{"{endpoint}": "feed.key"}}'
    assert exposed(input__connect=endpoint, security__server_keys=keys) == []


def test_metrics_beyond_the_machine_want_tls_and_users() -> None:
    here = {"metrics__host": "0.0.0.0"}
    assert [line.split(";")[1] for line in exposed(**here)] == [
        " set metrics.cert_file", " set metrics.users or metrics.client_ca_file",
    ]  # fmt: skip
    tls = {"metrics__cert_file": "c", "metrics__key_file": "k"}
    assert len(exposed(**here, **tls)) == 1
    assert exposed(**here, **tls, metrics__users='{"a": "h"}') == []
    assert exposed(**here, **tls, metrics__client_ca_file="ca") == []
    assert exposed(**here, metrics__enabled="false") == []


@pytest.mark.parametrize(
    ("asked", "mend", "said"),
    [
        ({"journal.durability": "strict"}, {"checkpoint.path": "c"}, "set it"),
        ({"engine.parking": "p"}, {"engine.when_full": "evict"}, "'evict' or engine.idle_timeout"),
        ({"engine.parking": "p"}, {"engine.idle_timeout": "60"}, "'evict' or engine.idle_timeout"),
        ({"ticks.gap": "missing"}, {"ticks.max_gap": "60"}, "set ticks.max_gap"),
        ({"ticks.gap": "reset"}, {"ticks.max_gap": "60"}, "set ticks.max_gap"),
        ({"ticks.outlier": "drop"}, {"ticks.outlier_sigma": "6"}, "set ticks.outlier_sigma"),
        ({"ticks.outlier": "clip"}, {"ticks.outlier_sigma": "6"}, "set ticks.outlier_sigma"),
    ],
)
def test_what_is_asked_for_in_vain_is_said_with_the_mend(
    asked: dict[str, str], mend: dict[str, str], said: str
) -> None:
    def vain(**given: str) -> list[str]:
        return [*without_effect(load_config(None, {"model": "m", **given}, environ={}))]

    assert vain() == vain(**mend) == vain(**asked, **mend) == []
    (line,) = vain(**asked)
    assert line.startswith(f"{next(iter(asked))}: ")
    assert line.endswith(said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"output.bind": "tcp://127.0.0.1:5555"}, "tcp://127.0.0.1:5555 is to be listened on twi"),
        ({"snapshot.bind": "tcp://127.0.0.1:5556"}, "choose another port for one"),
        ({"metrics.port": "5556"}, "tcp://127.0.0.1:5556 is to be listened on twice"),
        ({"input.bind": "ipc:///x,ipc:///x"}, "ipc:///x is to be listened on twice"),
        ({"metrics.cert_file": "c"}, "go together"),
        ({"metrics.client_ca_file": "c"}, "needs metrics.cert_file"),
        ({"security.clients": "c"}, "needs security.secret_key"),
        ({"security.server_keys": '{"tcp://a:1": "k"}'}, "connect names tcp://a:1"),
        ({"security.server_keys": "{"}, "--set security.server_keys: security.server_keys: "),
        ({"metrics.users": '["a"]'}, "metrics.users"),
        ({"output.quality": "true", "engine.watch": "false"}, "needs engine.watch"),
        ({"output.quality": "true", "interval.coverage": "0"}, "interval.coverage above 0"),
    ],
)
def test_what_does_not_go_together(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, {"model": "m", **options}, environ={})
    assert said in str(error.value)
    assert "--set model" not in str(error.value)
    assert "\n" not in str(error.value)
