"""Options of the daemon: declared here and nowhere else.

Values come from flags, then ``STREAMLSTM_...`` environment variables, then the TOML file, then the
defaults. The environment names a table and its key with two underscores between them
(``STREAMLSTM_INPUT__BIND``); there, and in flags, a list is ``a,b`` or JSON.
"""

import difflib
import json
import os
import tomllib
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from streamlstm.endpoints import check, is_loopback, reaches_beyond
from streamlstm.files import mend_of

PREFIX = "STREAMLSTM_"

INPUT = "tcp://127.0.0.1:5555"
"""Where ticks are expected unless the operator says otherwise."""
OUTPUT = "tcp://127.0.0.1:5556"
"""Where predictions are published unless the operator says otherwise."""


MOST_COVERAGES = 8
"""Of intervals around each forecast."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is one line and says where it comes from."""

    def __init__(self, message: str) -> None:
        """What is no printable character, in a key or a name of the file's, is shown escaped."""
        shown = (char if char.isprintable() else repr(char)[1:-1] for char in message)
        super().__init__("".join(shown))


def _split(value: object) -> object:
    """Take a list from the text of a variable or a flag."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return _parse(value)
    return value.split(",") if value else ()


def _parse(value: object) -> object:
    """Take a table, or a list, from the text of a variable or a flag."""
    try:
        return json.loads(value or "{}") if isinstance(value, str) else value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _listed(value: object) -> object:
    """Take a list from a number alone, or from the text of a variable or a flag."""
    return (value,) if isinstance(value, int | float) else _split(value)


def _coverages(given: tuple[float, ...]) -> tuple[float, ...]:
    """Refuse what no intervals can have."""
    if given == (0,):
        return ()
    if len({*given}) < len(given) or len(given) > MOST_COVERAGES:
        raise ValueError(
            f"{', '.join(map(str, given))}: name {MOST_COVERAGES} at most, each of them once"
        )
    if strange := [coverage for coverage in given if not 0 < coverage < 1]:
        raise ValueError(f"{strange[0]} does not lie between 0 and 1; 0 alone means none")
    return given


def _endpoints(given: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(check, given))


def _hwm(said: Mapping[str, object]) -> int:
    """Messages that may wait: fewer where each holds many ticks."""
    return 1000 if said.get("format") == "arrow" else 100_000


Format = Literal["json", "msgpack", "binary", "arrow"]
Texts = Annotated[tuple[str, ...], BeforeValidator(_split)]
Endpoints = Annotated[Texts, AfterValidator(_endpoints)]
Numbers = Annotated[tuple[int, ...], BeforeValidator(_split)]
Coverages = Annotated[tuple[float, ...], BeforeValidator(_listed), AfterValidator(_coverages)]
Policy = Literal["block", "drop_newest", "drop_oldest", "coalesce"]
Durability = Literal["strict", "interval", "off"]
TextByName = Annotated[Mapping[str, str], BeforeValidator(_parse)]
PathByName = Annotated[Mapping[str, Path], BeforeValidator(_parse)]
OptionalPath = Annotated[Path | None, BeforeValidator(lambda value: value or None)]


class _Table(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is neither a number nor a text")
        return value


class Input(_Table):
    """Where ticks come from."""

    connect: Endpoints = Field(default=(), description="endpoints of publishers to connect to")
    bind: Endpoints = Field(
        default_factory=lambda said: () if said.get("connect") else (INPUT,),
        description="endpoints to listen on; none by default where `connect` names some",
    )
    topics: Texts = Field(
        default=(),
        description="take only messages whose first frame (the series' name, in arrow the topic)"
        " begins with one of these, so no json or msgpack in one frame; empty: all",
    )
    format: Format = Field(
        default="json",
        description="of all ticks on this socket: json, msgpack, binary, arrow (many a message)",
    )
    hwm: int = Field(
        default_factory=_hwm,
        ge=1,
        le=100_000_000,
        description="messages that may wait for each publisher, about 100 bytes each and their"
        " frames; beyond it the publisher's own queue fills; 1,000 by default for arrow",
    )
    max_frame: int = Field(
        default_factory=lambda said: 1 << 22 if said.get("format") == "arrow" else 65_536,
        ge=64,
        le=1 << 26,
        description="bytes; larger frames are dropped, senders of 16 times as much disconnected;"
        " 4,194,304 by default for arrow",
    )
    kind: Literal["sub", "pull"] = Field(
        default="sub",
        description="the socket: sub, or pull, which makes publishers (then push) wait, not drop",
    )
    overload: Policy = Field(
        default="block",
        description="when ticks come faster than they are served: block (the publishers' queues"
        " fill), drop_newest, drop_oldest, coalesce (only the latest of each series is served)",
    )
    max_pending: int = Field(
        default=16_384,
        ge=1,
        le=10_000_000,
        description="ticks that may wait before some are dropped or coalesced; not used by block",
    )
    max_key: int = Field(
        default=64, ge=1, le=1024, description="bytes of a series name; costs this per series"
    )


class Output(_Table):
    """Where predictions go."""

    connect: Endpoints = Field(
        default=(), description="endpoints to connect to, for instance a forwarder's"
    )
    bind: Endpoints = Field(
        default_factory=lambda said: () if said.get("connect") else (OUTPUT,),
        description="endpoints to listen on; none by default where `connect` names some",
    )
    format: Format = Field(
        default="json",
        description="of predictions: json, msgpack, binary, arrow (a message for each batch)",
    )
    batch: bool = Field(
        default=False,
        description="publish each batch in arrow too, under the topic predictions.batch",
    )
    quality: bool = Field(
        default=False,
        description="say with each prediction what engine.watch knows of its series",
    )
    hwm: int = Field(
        default_factory=_hwm,
        ge=1,
        le=100_000_000,
        description="messages that may wait for each subscriber, about 100 bytes each and their"
        " frames; beyond it a slow subscriber loses the newest; 1,000 by default for arrow",
    )


class Engine(_Table):
    """What computes, and how much of it."""

    backend: Literal["cpu", "cuda", "auto"] = Field(
        default="cpu", description="kernels: cpu, cuda, or auto (cuda where a GPU can be used)"
    )
    threads: int = Field(default=0, ge=0, le=1024, description="of the kernels; 0: one per core")
    max_batch: int = Field(
        default=1024, ge=1, le=65_536, description="ticks stepped at once, never waited for"
    )
    max_wait_us: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="microseconds that the first tick of a batch waits for others; 0: none",
    )
    max_series: int = Field(
        default=100_000,
        ge=1,
        le=100_000_000,
        description="series kept at once",
    )
    when_full: Literal["reject", "evict"] = Field(
        default="reject",
        description="what a further series meets: reject (its ticks are dropped), evict (the series"
        " that was idle longest is closed, unless a tick of it waits)",
    )
    idle_timeout: float = Field(
        default=0,
        ge=0,
        le=1e9,
        description="seconds after which a series that sends nothing is closed; 0: never",
    )
    history: int = Field(
        default=32,
        ge=0,
        le=100_000,
        description="latest ticks kept of each series, from which another model begins whose state"
        " has another shape; costs 8 bytes for each, and 8 for each of its values",
    )
    scored: Numbers = Field(
        default=(),
        description="steps ahead whose forecasts are scored when their tick comes, for intervals"
        " and learning; empty: the first, the middle and the last",
    )
    learning: bool = Field(
        default=True,
        description="let each series learn from its own errors, where the model has directions",
    )
    watch: bool = Field(
        default=True,
        description="judge each series by its own errors, those of the first step that is scored:"
        " anomalies, drifts, and how good its forecasts are; 48 bytes a series",
    )
    parking: OptionalPath = Field(
        default=None,
        description="file that keeps the state of series closed for either reason until they speak"
        " again; empty: they start anew",
    )


class Snapshot(_Table):
    """The service that tells those who join late the latest prediction of each series."""

    bind: Endpoints = Field(
        default=(),
        description="endpoints to listen on, such as tcp://127.0.0.1:5557; empty: none, and no"
        " prediction is kept (one takes 24 bytes a step and target, and 16 for each further"
        " coverage)",
    )


class Ticks(_Table):
    """What is done with ticks that are not as they should be; each of these is counted."""

    late: Literal["drop", "accept"] = Field(
        default="drop",
        description="dated before the latest of their series: drop, or accept (stepped as the next"
        " one on the grid)",
    )
    duplicate: Literal["drop", "accept"] = Field(
        default="drop", description="dated as the latest of their series: drop, accept (likewise)"
    )
    max_gap: float = Field(
        default=0,
        ge=0,
        le=1e9,
        description="seconds between two ticks of a series, beyond which `gap` holds; 0: no limit",
    )
    gap: Literal["hold", "reset", "missing"] = Field(
        default="hold",
        description="after one that long: hold (one step, which knows of the gap), reset (the"
        " series begins anew), missing (each grid point between is stepped, its value missing)",
    )
    max_missing: int = Field(
        default=100,
        ge=1,
        le=100_000,
        description="grid points stepped in one gap, the last; those before are held",
    )
    not_a_number: Literal["drop", "missing"] = Field(
        default="drop",
        description="NaN, infinities: drop, or missing (the model's own forecast is taken; of an"
        " input that is no target, its latest value)",
    )
    outlier_sigma: float = Field(
        default=0,
        ge=0,
        le=1e9,
        description="times its scale that a value may lie off its series' mean, once that has had"
        " 30 ticks; 0: no limit",
    )
    outlier: Literal["accept", "clip", "drop"] = Field(
        default="accept",
        description="beyond it: accept (and count), clip (to the limit), drop; after 10 in a row"
        " those that follow are taken as they are, until one is within",
    )
    max_ahead: float = Field(
        default=0,
        ge=0,
        le=1e9,
        description="seconds after its arrival that a tick may be dated, or it is dropped; 0: any",
    )


class Interval(_Table):
    """The intervals around each forecast."""

    coverage: Coverages = Field(
        default=(0.9,),
        description="share of values to fall inside, or several such as 0.9,0.5, the first of which"
        " is the main one (lower and upper); 0: none",
    )


class Metrics(_Table):
    """The HTTP endpoint: /metrics, /-/healthy, /-/ready, and a page to look at."""

    enabled: bool = Field(default=True, description="serve it")
    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: all")
    port: int = Field(default=9464, ge=0, le=65_535, description="0: any free port")
    page: bool = Field(
        default=False,
        description="serve /live too, a page that shows forecasts as they come; the latest"
        " prediction of each series is then kept, as for snapshot.bind",
    )
    cert_file: OptionalPath = Field(
        default=None,
        description="PEM file of this daemon's certificate, and of those up to its authority;"
        " empty: no TLS",
    )
    key_file: OptionalPath = Field(default=None, description="PEM file of the certificate's key")
    client_ca_file: OptionalPath = Field(
        default=None,
        description="PEM file of the authorities that clients' certificates have to come from;"
        " empty: clients need none",
    )
    users: TextByName = Field(
        default={},
        description="those who may ask (basic authentication), and the hashes of their passwords"
        " that `streamlstm keys --password NAME` prints; empty: anyone",
    )

    @model_validator(mode="after")
    def _parts_go_together(self) -> Self:
        if bool(self.cert_file) != bool(self.key_file):
            raise ValueError("metrics.cert_file and metrics.key_file go together; name both")
        if self.client_ca_file and not self.cert_file:
            raise ValueError("metrics.client_ca_file needs metrics.cert_file; name one")
        if self.page and not self.enabled:
            raise ValueError("metrics.page needs metrics.enabled")
        return self


class Security(_Table):
    """Who may send ticks and read predictions; key files are made by `streamlstm keys`."""

    secret_key: OptionalPath = Field(
        default=None,
        description="this daemon's NAME.key_secret: whoever connects to what is bound has to know"
        " its NAME.key; empty: anyone may connect",
    )
    clients: OptionalPath = Field(
        default=None,
        description="folder of the NAME.key files of those who may connect, looked at again when"
        " it changes; empty: all who know this daemon's key",
    )
    server_keys: PathByName = Field(
        default={},
        description="NAME.key files by endpoint, of those that input.connect and output.connect"
        " name; without one nothing is encrypted there",
    )
    max_connections: int = Field(
        default=1024,
        ge=1,
        le=100_000,
        description="to input and output at once; beyond it the latest are ended",
    )
    max_held: int = Field(
        default=1 << 30,
        ge=1 << 20,
        le=1 << 44,
        description="bytes that peers may have this daemon hold for them (messages that wait, parts"
        " of unfinished ones, subscriptions); beyond it all of them are disconnected",
    )


class Checkpoint(_Table):
    """The snapshot of all series, restored at start."""

    path: OptionalPath = Field(default=None, description="file to keep it in; empty: none is kept")
    interval: float = Field(
        default=60, ge=0, le=1e9, description="seconds between two; 0: at stop only"
    )
    keep: int = Field(
        default=2,
        ge=1,
        le=1000,
        description="how many; an older one serves where the newest is damaged, with the journal"
        " since then",
    )


class Journal(_Table):
    """What came since the checkpoint, in the folder ``<its path>.journal``; replayed at start."""

    durability: Durability = Field(
        default="interval",
        description="of the ticks that a forecast is made of: strict (on disk before it is"
        " published), interval (on disk soon after), off; none without checkpoint.path",
    )
    fsync_interval: float = Field(
        default=0.1, gt=0, le=3600, description="seconds from one sync to the next, for interval"
    )
    segment_bytes: int = Field(
        default=64 << 20, ge=1 << 16, le=1 << 34, description="of each file, allocated ahead"
    )
    retention: float = Field(
        default=0,
        ge=0,
        le=1e9,
        description="seconds that a file stays after its last tick, although the oldest checkpoint"
        " has them all; 0: until then",
    )


class Refit(_Table):
    """The model fitted anew, now and then, to what the journal holds; the better one serves."""

    interval: float = Field(
        default=0,
        ge=0,
        le=1e9,
        description="seconds from the start to the first, and from one to the next; 0: never",
    )
    ticks: int = Field(
        default=20_000,
        ge=10,
        le=100_000_000,
        description="latest ticks that are learned from, of a series",
    )
    series: int = Field(
        default=100,
        ge=1,
        le=10_000_000,
        description="that are learned from; of more, so many are drawn by lot",
    )
    holdout: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="share of the ticks, the latest, that judges both models",
    )
    margin: float = Field(
        default=0.01,
        ge=0,
        lt=1,
        description="share of the old model's error by which the new one's has to be smaller",
    )
    threads: int = Field(default=1, ge=1, le=1024, description="of the process that fits")


class Service(_Table):
    """The process."""

    busy_poll_us: int = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="microseconds after a batch in which the next tick is looked for without"
        " sleeping; costs a core",
    )
    cpus: Numbers = Field(default=(), description="cores to run on, such as 0,1; empty: any")
    watch_model: bool = Field(
        default=False, description="take the model's file anew when it changes, as at SIGHUP"
    )
    shutdown_timeout: float = Field(
        default=10, gt=0, le=3600, description="seconds from SIGTERM to the exit, whatever happens"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least severe events logged: debug, info, warning, error"
    )


class Config(_Table):
    """All options of ``streamlstm run``."""

    model: Path = Field(description="the model file, as `streamlstm fit` writes it")
    input: Input = Input()
    output: Output = Output()
    snapshot: Snapshot = Snapshot()
    engine: Engine = Engine()
    ticks: Ticks = Ticks()
    interval: Interval = Interval()
    metrics: Metrics = Metrics()
    security: Security = Security()
    checkpoint: Checkpoint = Checkpoint()
    journal: Journal = Journal()
    refit: Refit = Refit()
    service: Service = Service()

    @model_validator(mode="after")
    def _sockets_lead_somewhere(self) -> Self:
        for name, table in (("input", self.input), ("output", self.output)):
            if not table.bind and not table.connect:
                raise ValueError(f"{name}.bind and {name}.connect are both empty; name an endpoint")
        bound = [*self.input.bind, *self.output.bind, *self.snapshot.bind]
        if self.metrics.enabled:
            bound.append(f"tcp://{self.metrics.host}:{self.metrics.port}")
        for place in bound:
            if bound.count(place) > 1 and not place.endswith((":*", ":0")):
                raise ValueError(f"{place} is to be listened on twice; choose another port for one")
        if self.input.kind == "pull" and self.input.topics:
            raise ValueError("input.topics needs input.kind = 'sub'; a pull socket takes all")
        return self

    @model_validator(mode="after")
    def _refits_have_ticks_to_learn_from(self) -> Self:
        if self.refit.interval:
            if not self.checkpoint.path or self.journal.durability == "off":
                raise ValueError(
                    "refit.interval needs a journal to learn from; set checkpoint.path, and"
                    " journal.durability to other than 'off'"
                )
            if not self.journal.retention:
                raise ValueError(
                    "refit.interval needs journal.retention, the seconds of ticks that are learned"
                    " from; set some days, such as 604800"
                )
        return self

    @model_validator(mode="after")
    def _quality_is_known(self) -> Self:
        if self.output.quality and not (self.engine.watch and self.interval.coverage):
            raise ValueError("output.quality needs engine.watch, and interval.coverage above 0")
        return self

    @model_validator(mode="after")
    def _keys_open_something(self) -> Self:
        connected = (*self.input.connect, *self.output.connect)
        if lost := [name for name in self.security.server_keys if name not in connected]:
            raise ValueError(
                f"security.server_keys: neither input.connect nor output.connect names {lost[0]}"
            )
        if self.security.clients and not self.security.secret_key:
            raise ValueError("security.clients needs security.secret_key, this daemon's own")
        return self


def exposures(config: Config) -> Iterator[str]:
    """What of it anyone beyond this machine may use or overhear; each one line with the mend."""
    for name in Config.model_fields:
        table = getattr(config, name)
        for endpoint in getattr(table, "bind", ()):
            if reaches_beyond(endpoint) and not config.security.secret_key:
                yield (
                    f"{name}.bind: {endpoint} is open to anyone beyond this machine; set"
                    " security.secret_key ('streamlstm keys' makes one)"
                )
        for endpoint in getattr(table, "connect", ()):
            if reaches_beyond(endpoint) and endpoint not in config.security.server_keys:
                yield (
                    f"{name}.connect: {endpoint} is beyond this machine, and what passes is neither"
                    " encrypted nor known to be its; name its key in security.server_keys"
                )
    metrics = config.metrics
    if metrics.enabled and not is_loopback(metrics.host):
        if not metrics.cert_file:
            yield (
                f"metrics.host: {metrics.host} is beyond this machine, and what passes is not"
                " encrypted; set metrics.cert_file"
            )
        if not metrics.users and not metrics.client_ca_file:
            yield (
                f"metrics.host: {metrics.host} is open to anyone beyond this machine; set"
                " metrics.users or metrics.client_ca_file"
            )


def without_effect(config: Config) -> Iterator[str]:
    """What is asked for in vain, since another option is off; each one line with the mend."""
    engine, ticks = config.engine, config.ticks
    if config.journal.durability == "strict" and not config.checkpoint.path:
        yield "journal.durability: nothing is kept without checkpoint.path; set it"
    if engine.parking and engine.when_full == "reject" and not engine.idle_timeout:
        yield (
            "engine.parking: no series is ever parked; set engine.when_full = 'evict' or"
            " engine.idle_timeout"
        )
    if ticks.gap != "hold" and not ticks.max_gap:
        yield f"ticks.gap: no gap is too long, none leads to {ticks.gap!r}; set ticks.max_gap"
    if ticks.outlier != "accept" and not ticks.outlier_sigma:
        yield (
            f"ticks.outlier: no value is one, none leads to {ticks.outlier!r}; set"
            " ticks.outlier_sigma"
        )


def options(table: type[BaseModel] = Config, path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every option with its dotted name, in the order of declaration."""
    for name, info in table.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            yield from options(info.annotation, f"{path}{name}.")
        else:
            yield f"{path}{name}", info


def load_config(
    path: Path | None = None,
    overrides: Mapping[str, object] = types.MappingProxyType({}),
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Read ``path`` (no file where None), the environment, and ``overrides`` by dotted name.

    Raises:
        ConfigError: a source cannot be read, or an option is unknown, missing or out of range.
    """
    data = _read_toml(path) if path else {}
    origins: dict[tuple[str, ...], str] = {}
    variables = {k: v for k, v in sorted(environ.items()) if k.startswith(PREFIX)}
    for name, text in variables.items():
        _put(data, origins, tuple(name.removeprefix(PREFIX).lower().split("__")), text, name)
    for name, value in overrides.items():
        _put(data, origins, tuple(name.split(".")), value, f"--set {name}")
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        # a misspelt key first: it explains the key that is missing
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        raise ConfigError(_explain(first, origins, str(path or "configuration"))) from None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; deploy/streamlstm.toml is one to copy") from None
    except OSError as error:
        mend = mend_of(error, "name the file to read")
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {mend}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except (ValueError, RecursionError) as error:  # TOML's own, and a number of too many digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def _put(
    data: dict[str, Any],
    origins: dict[tuple[str, ...], str],
    keys: tuple[str, ...],
    value: object,
    origin: str,
) -> None:
    *tables, option = keys
    for name in tables:
        if not isinstance(data.get(name), dict):
            data[name] = {}
        data = data[name]
    data[option] = value
    origins[keys] = origin


def _explain(error: ErrorDetails, origins: Mapping[tuple[str, ...], str], file: str) -> str:
    """One line: where the value comes from, which key it has, what is wrong, what to do."""
    keys = tuple(str(key) for key in error["loc"])
    below = (origin for name, origin in origins.items() if name == keys[: len(name)])
    inside = (origin for name, origin in origins.items() if name[: len(keys)] == keys)
    origin = next(below, None) or (next(inside, file) if keys else file)
    where = f"{origin}: {'.'.join(keys)}" if keys else origin
    match error["type"]:
        case "extra_forbidden":
            return f"{where}: unknown option; {_suggest(keys)}"
        case "missing":
            name = PREFIX + "__".join(keys).upper()
            return f"{where}: missing; set it there, by {name}=... or by --set {'.'.join(keys)}=..."
        case "literal_error":
            return f"{where}: {error['input']!r} is unknown; there is: {error['ctx']['expected']}"
        case "value_error" | "assertion_error":
            return f"{where}: {error['ctx']['error']}"
        case _:
            return f"{where}: {error['msg']}, not {error['input']!r}"


def _suggest(keys: tuple[str, ...]) -> str:
    tables = list(Config.model_fields)
    names = [name for name, _ in options()]
    moved = [name for name in names if name.split(".")[-1] == keys[-1]]
    asked = ".".join(keys)
    close = difflib.get_close_matches(asked, tables if len(keys) == 1 else names, n=1, cutoff=0.75)
    if guess := close or moved:
        return f"did you mean {guess[0]!r}?"
    beside = [name for name in names if name.startswith(f"{keys[0]}.")]
    return f"there is: {', '.join(beside or tables)}"
