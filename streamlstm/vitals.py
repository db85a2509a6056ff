"""A daemon's vital signs, read from its ``/metrics`` and ``/-/ready``; imports nothing heavy."""

import base64
import contextlib
import getpass
import http.client
import math
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from streamlstm.config import ConfigError

PASSWORD = "METRICS_PASSWORD"
"""Environment variable with the password of ``--user``."""
PATIENCE = 10.0
"""Seconds that a daemon may take to answer."""
LONGEST = 1 << 24
"""Bytes of an answer at most."""
_PREFIX = "streamlstm_"

Labels = tuple[tuple[str, str], ...]


class VitalsError(OSError):
    """A daemon that cannot be asked; the message is one line and says the mend."""


class Scrape(NamedTuple):
    """What a daemon said at one moment."""

    at: float
    """seconds of our monotonic clock"""
    now: float
    """its own clock: seconds since the epoch"""
    ready: bool
    samples: Mapping[str, Mapping[Labels, float]]
    """values by name, without the prefix, and by labels"""

    def value(self, name: str) -> float:
        """Of a sample without labels; NaN where there is none."""
        return self.samples.get(name, {}).get((), math.nan)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Values by that label."""
        found = self.samples.get(name, {})
        return {value: n for labels, n in found.items() for key, value in labels if key == label}

    def labels(self, name: str) -> dict[str, str]:
        """Labels of the first sample of that name."""
        return dict(next(iter(self.samples.get(name, {})), ()))


class Daemon:
    """Where a daemon's metrics are served, and how one is let in."""

    def __init__(
        self,
        url: str,
        *,
        user: str | None = None,
        password: str = "",
        ca: Path | None = None,
        cert: Path | None = None,
        cert_key: Path | None = None,
    ) -> None:
        """Ask nothing yet.

        Args:
            url: http or https, host and port; a path of /metrics is left out.
            user, password: basic authentication.
            ca: PEM file of the authorities that are trusted, beside those of the system.
            cert, cert_key: PEM files of our own certificate, and of its key if that is apart.

        Raises:
            ConfigError: one of them is of no use.
        """
        if "://" not in url:
            url = f"http://{url}"
        try:
            parts = urlsplit(url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            known = None
        if not known or parts.username or any(not c.isprintable() or c == " " for c in url):
            shown = url.rpartition("@")[2]  # before it a password may stand
            raise ConfigError(f"{shown}: give a URL like http://host:9464, a name by --user")
        self.url = f"{parts.scheme}://{parts.netloc}"
        self._user = user
        self._headers = {}
        if user is not None:
            if ":" in user:
                raise ConfigError(f"--user {user}: a name has no colon; the password is asked for")
            said = base64.b64encode(f"{user}:{password}".encode()).decode()
            self._headers["Authorization"] = f"Basic {said}"
        context = ssl.create_default_context()
        _load("--ca", ca, lambda: context.load_verify_locations(ca))
        if cert_key and not cert:
            raise ConfigError(f"--cert-key {cert_key}: give the certificate too, by --cert")
        if cert:
            _load("--cert", cert, lambda: context.load_cert_chain(cert, cert_key, lambda: ""))
        # neither a proxy nor another address that is answered with: the password is for this one
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=context),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
        ):
            self._opener.add_handler(handler)

    def scrape(self) -> Scrape:
        """Ask for all.

        Raises:
            VitalsError: there is no answer, or not one of a daemon.
        """
        ready, _, _ = self._get("/-/ready")
        status, text, date = self._get("/metrics")
        samples: dict[str, dict[Labels, float]] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    name = sample.name.removeprefix(_PREFIX)
                    labels = tuple(sorted(sample.labels.items()))
                    samples.setdefault(name, {})[labels] = float(sample.value)
        except (ValueError, LookupError):
            samples = {}
        if status != 200 or "ticks_received_total" not in samples:
            raise VitalsError(
                f"{self.url}: these are not the metrics of a daemon; give its metrics.host and"
                " metrics.port"
            )
        now = time.time()
        with contextlib.suppress(ValueError):
            now = parsedate_to_datetime(date).timestamp() if date else now
        return Scrape(time.monotonic(), now, ready == 200, samples)

    def _get(self, path: str) -> tuple[int, str, str]:
        """Status, text and date of an answer."""
        asked = urllib.request.Request(self.url + path, headers=self._headers)
        try:
            with self._opener.open(asked, timeout=PATIENCE) as answer:
                text = answer.read(LONGEST).decode(errors="replace")
                if answer.length:
                    raise http.client.IncompleteRead(b"", answer.length)
                return int(answer.status), text, answer.headers.get("Date", "")
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error.code), "", ""
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            raise VitalsError(f"{self.url}: {self._why(cause)}") from None

    def _refused(self, status: int) -> int:
        if status == 401 and self._user is None:
            raise VitalsError(f"{self.url}: asks for name and password; give the name by --user")
        if status == 401:
            raise VitalsError(f"{self.url}: name or password is wrong; see metrics.users there")
        if status == 429:
            raise VitalsError(f"{self.url}: a wrong password was just tried; try again in a second")
        return status

    def _why(self, cause: object) -> str:
        tls = self.url.startswith("https:")
        match cause:
            case ConnectionRefusedError():
                return "nothing listens there; is 'streamlstm run' up, with this metrics.port?"
            case ssl.SSLCertVerificationError():
                said = cause.verify_message
                return f"its certificate is not trusted ({said}); name its authority's file by --ca"
            case ssl.SSLError() if cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                return "speaks no TLS; write http://"
            case ssl.SSLEOFError() | ConnectionResetError() | http.client.HTTPException() if tls:
                return (
                    "hung up; if it speaks no TLS, write http://; if it has a"
                    " metrics.client_ca_file, give --cert"
                )
            case ssl.SSLError():
                return f"{cause.reason or cause}; if it asks for a certificate, give --cert"
            case TimeoutError():
                return f"no answer within {PATIENCE:g} s; is it reached from here, and not stuck?"
            case ConnectionResetError() | http.client.HTTPException():
                return "no answer in HTTP; if it has a metrics.cert_file, write https://"
            case OSError() if cause.strerror:
                return f"{cause.strerror}; give a URL like http://host:9464"
        return f"{cause}; give a URL like http://host:9464"


def _load(flag: str, path: Path | None, load: Any) -> None:
    try:
        if path:
            load()
    except OSError as error:  # ssl.SSLError too
        said = "not a PEM file of that" if isinstance(error, ssl.SSLError) else error.strerror
        raise ConfigError(f"{flag} {path}: {said}; name another") from None


def password_of(user: str, file: Path | None) -> str:
    """From the file, the environment, or whoever sits at the terminal.

    Raises:
        ConfigError: there is none.
    """
    if file:
        try:
            return file.read_text().rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "not text"
            raise ConfigError(f"--password-file {file}: {said}; name another") from None
    if (password := os.environ.get(PASSWORD)) is not None:
        return password
    if not sys.stdin.isatty():
        raise ConfigError(f"--user {user}: no password; set {PASSWORD}, or give --password-file")
    return getpass.getpass(f"password of {user}: ")


# --- what they mean -------------------------------------------------------------------------------

TROUBLES = (
    "input_gaps", "publisher_gaps", "publisher_restarts", "series_quarantined", "drifts",
    "anomalies", "subscriber_overflows", "connections_refused", "connections_ended",
    "snapshots_refused", "model_reload_failures", "checkpoint_failures", "journal_failures",
    "ticks_not_journalled", "parked_series_refused", "parking_failures",
)  # fmt: skip
"""Counters that are told where they are not 0."""


class Vitals(NamedTuple):
    """The vital signs; NaN where one is not known, rates are per second."""

    ready: bool
    since: float
    """when the daemon was started, in seconds since the epoch"""
    uptime: float
    """seconds"""
    model: Mapping[str, str]
    received: float
    received_rate: float
    published: float
    published_rate: float
    p50: float
    """seconds from taking a tick to handing over its prediction"""
    p99: float
    dropped: Mapping[str, float]
    """by reason"""
    dropped_rate: float
    lag: float
    """seconds"""
    pending: float
    series: float
    state_bytes: float
    coverage: Mapping[str, float]
    """share of ticks within their interval, by step ahead"""
    over_last_value: Mapping[str, float]
    """error over that of the last value, by step ahead"""
    over_seasonal_naive: Mapping[str, float]
    checkpoint_age: float
    """seconds"""
    resident_bytes: float
    cores: float
    """of processor time a second"""
    counted: Mapping[str, float]
    """those of :data:`TROUBLES` that are not 0"""


def vitals(now: Scrape, before: Scrape | None = None) -> Vitals:
    """The vital signs ``now``; rates and latencies are of the time since ``before``.

    They are not known where the daemon was started anew meanwhile.
    """
    started = now.value("process_start_time_seconds")
    if before and before.value("process_start_time_seconds") != started:
        before = None
    seconds = max(now.at - before.at, 1e-9) if before else math.nan

    def rate(name: str) -> float:
        return (now.value(name) - before.value(name)) / seconds if before else math.nan

    drops = now.by("ticks_dropped_total", "reason")
    earlier = sum(before.by("ticks_dropped_total", "reason").values()) if before else math.nan
    scored = now.by("forecasts_scored_total", "step")
    errors = now.by("forecast_errors_total", "step")
    age = now.now - now.value("checkpoint_last_success_timestamp_seconds")
    return Vitals(
        ready=now.ready,
        since=started,
        uptime=now.now - started,
        model=now.labels("model_info"),
        received=now.value("ticks_received_total"),
        received_rate=rate("ticks_received_total"),
        published=now.value("predictions_published_total"),
        published_rate=rate("predictions_published_total"),
        p50=_quantile(0.5, "tick_to_publish_seconds", now, before),
        p99=_quantile(0.99, "tick_to_publish_seconds", now, before),
        dropped={reason: count for reason, count in drops.items() if count},
        dropped_rate=(sum(drops.values()) - earlier) / seconds,
        lag=now.value("event_lag_seconds"),
        pending=now.value("pending_ticks"),
        series=now.value("active_series"),
        state_bytes=now.value("state_bytes"),
        coverage=_over(now.by("forecasts_covered_total", "step"), scored),
        over_last_value=_over(errors, now.by("last_value_errors_total", "step")),
        over_seasonal_naive=_over(errors, now.by("seasonal_naive_errors_total", "step")),
        checkpoint_age=0.0 if age < 0 else age,  # its date is told to the second
        resident_bytes=now.value("process_resident_memory_bytes"),
        cores=rate("process_cpu_seconds_total"),
        counted={name: n for name in TROUBLES if (n := now.value(f"{name}_total")) > 0},
    )


def _over(counts: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """One over the other, by what they have in common."""
    return {key: counts[key] / other for key, other in others.items() if other and key in counts}


def _quantile(q: float, name: str, now: Scrape, before: Scrape | None) -> float:
    """Of a histogram, of what came since ``before``; NaN where nothing did."""
    if before is None:
        return math.nan
    earlier = before.by(f"{name}_bucket", "le")
    buckets = now.by(f"{name}_bucket", "le")
    counts = sorted((float(le), count - earlier.get(le, 0.0)) for le, count in buckets.items())
    return quantile(q, counts)


def quantile(q: float, buckets: Sequence[tuple[float, float]]) -> float:
    """As Prometheus' ``histogram_quantile``: within a bucket, all lies evenly.

    Args:
        q: from 0 to 1.
        buckets: upper bounds, the last of them infinite, and how many lay up to there.
    """
    if not buckets or not buckets[-1][1] > 0:
        return math.nan
    rank, lower, below = q * buckets[-1][1], 0.0, 0.0
    for upper, count in buckets:
        if count >= rank and count > below:
            if math.isinf(upper):
                return lower
            return lower + (upper - lower) * (rank - below) / (count - below)
        lower, below = upper, count
    return lower
