"""A forecaster in plain float64 Python, from a ``.safetensors`` alone: imports nothing of ours.

What the model file's documentation says, written a second time for the tests to compare with.
"""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from safetensors import safe_open

PERIOD = {"hour": 86400, "week": 7 * 86400, "year": 31_556_952}


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with safe_open(path, framework="numpy") as file:
        spec = json.loads(file.metadata()["streamlstm"])["spec"]
        return spec, {name: file.get_tensor(name).astype(float) for name in file.keys()}  # noqa: SIM118


def act(name: str, x: np.ndarray) -> np.ndarray:
    return {
        "tanh": np.tanh,
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)),
        "relu": lambda v: np.maximum(v, 0),
        "hard_sigmoid": lambda v: np.clip(v / 6 + 0.5, 0, 1),
        "linear": lambda v: v,
    }[name](x)


class Oracle:
    """One series; ``step`` gives forecast, lower and upper, each (horizon, targets)."""

    def __init__(self, path: Path, coverage: float = 0.9) -> None:
        self.spec, self.w = read(path)
        self.coverage = coverage
        H, L = self.spec["hidden"], self.spec["layers"]
        self.h, self.c = np.zeros((L, H)), np.zeros((L, H))
        self.inputs: list[np.ndarray] = []  # the last of them, where there is a window
        self.grid: dict[int, np.ndarray] = {}  # place -> raw targets
        self.made: dict[
            int, tuple[np.ndarray, ...]
        ] = {}  # place -> forecast, half-width, spread, unrest
        self.place, self.seen, self.last = 0, 0, 0
        self.loc = np.zeros(self.spec["inputs"])
        self.var = np.zeros(self.spec["inputs"])
        self.paces: dict[tuple[int, int], tuple[float, int]] = {}
        self.errors: dict[tuple[int, int], tuple[float, ...]] = {}  # count, mean of late, usual
        self.width: np.ndarray | None = None
        self.mean_scale = np.zeros(self.spec["targets"])
        self.mean = np.zeros((self.spec["horizon"], self.spec["targets"]))  # of what was told
        self.taught = self.taught_steps()
        self.level = np.zeros(self.spec["targets"])
        self.profile: dict[int, np.ndarray] = {}  # phase -> raw targets

    def step(self, ts_ns: int, values: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        spec, y = self.spec, np.array(values, float)
        T, K, S = spec["targets"], spec["horizon"], spec["season"]
        D = spec.get("directions", 0)
        if self.seen:
            steps = 1
            if spec["step_ns"]:
                steps = max(1, math.floor((ts_ns - self.last) / spec["step_ns"] + 0.5))
            for missed in range(self.place + 1, self.place + steps):
                older = [
                    p for p in range(missed, -1, -(self.history() or missed + 1)) if p in self.grid
                ]
                self.grid[missed] = self.grid[older[0]] if older else self.grid[self.place]
            for missed in range(self.place + 1, min(self.place + steps, self.smoothed_season())):
                self.profile[missed] = self.profile[self.place]
            self.place += steps
        self.last, self.seen = ts_ns, self.seen + 1
        most = self.beyond_belief(y)
        error = np.isfinite(most[:T])
        loc, scale = self.scaling(y, most)
        shown = 30.0 if spec["scaling"]["kind"] == "running" else np.inf

        past = [self.grid.get(self.place - lag, y[:T]) for lag in spec["lags"]]
        x = [*((y - loc) / scale), *np.ravel([(p - y[:T]) / scale[:T] for p in past])]
        zone = ZoneInfo(spec["timezone"])
        moment = datetime.fromtimestamp(ts_ns // 10**9, UTC)
        local = ts_ns / 1e9 + moment.astimezone(zone).utcoffset().total_seconds()
        for name in spec["calendar"]:
            turn = 2 * math.pi * (local % PERIOD[name]) / PERIOD[name]
            x += [math.sin(turn), math.cos(turn), math.sin(2 * turn), math.cos(2 * turn)]
        if self.smoothed_season():
            x += [*(self.smooth(y[:T], error) / scale[:T])]
        answers = self.network(np.clip(x, -shown, shown))
        out, directions = answers[: K * T].reshape(K, T), answers[len(answers) - D :]
        told = np.zeros((K, T))
        if spec.get("spread"):
            told = np.clip(answers[K * T : 2 * K * T].reshape(K, T), -1.5, 1.5)
            self.mean = self.mean + (told - self.mean) / min(self.place + 11, 50)
            told = np.clip(told - self.mean, -1.5, 1.5)

        self.grid[self.place] = y[:T]
        base = np.empty((K, T))
        for k in range(K):
            base[k] = loc[:T] if spec["base"] == "none" else y[:T]
            if spec["base"] == "blend":
                base[k] += self.blended(k, y[:T])
            if spec["base"] == "seasonal":
                back = self.place + k + 1 - S * (k // S + 1)
                base[k] = self.grid.get(back, y[:T])
        point = base + scale[:T] * out
        point = point + self.correction(y[:T], point, scale[:T], directions)
        unit = self.unit(scale[:T])
        half = self.interval(y[:T], unit, told) * unit
        self.made[self.place] = point, half, told, self.unrest
        return point, point - half, point + half

    def blended(self, k: int, y: np.ndarray) -> np.ndarray:
        """How far the weighted terms move the base of step ``k + 1`` from the latest value."""
        blend, T = self.spec["blend"], len(y)
        weights = np.array(blend["weights"][k * T : k * T + T]).T
        back = {s: self.place + k + 1 - s * (k // s + 1) for s in (blend["short"], blend["long"])}
        at1, at2 = back[blend["short"]], back[blend["long"]]
        move = np.zeros(T)
        if at1 in self.grid:
            move += weights[0] * (self.grid[at1] - y)
            if at1 - blend["long"] in self.grid:
                move += weights[2] * (self.grid[at1] - self.grid[at1 - blend["long"]])
        near = self.grid.get(at1, y)
        move += weights[1] * (self.grid.get(at2, near) - y)
        if season := self.smoothed_season():
            phase = (self.place + 1 + k) % season
            there = phase in self.profile
            move += weights[3] * ((self.level + self.profile[phase] if there else near) - y)
        return move

    def smoothed_season(self) -> int:
        return ((self.spec["blend"] or {}).get("smoothing") or {"season": 0})["season"]

    def beyond_belief(self, y: np.ndarray) -> np.ndarray:
        """How far off its mean a value counts for: infinite but for one that is an error."""
        most = np.full(len(y), np.inf)
        if self.spec["scaling"]["kind"] != "running" or self.seen <= 30:
            return most
        reach, T = 30 * self.deviation(self.seen - 1), self.spec["targets"]
        for j, value in enumerate(y):
            loc = self.loc[j]
            if not reach[j] > 0 or (j < T and self.history() <= 2):
                continue
            if j >= T:
                most[j] = reach[j] / 2 if abs(value - loc) > reach[j] else np.inf
                continue
            one, two = self.grid[self.place - 1], self.grid[self.place - 2]
            before = [abs(each[j] - loc) > reach[j] for each in (one, two)]
            if abs(value - loc) > reach[j]:
                most[j] = np.inf if all(before) else reach[j] / 2
            elif before[0]:
                for back in (1, 2)[: 1 + before[1]]:
                    place = self.place - back
                    self.grid[place] = np.where(np.arange(T) == j, value, self.grid[place])
        return most

    def smooth(self, y: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Holt-Winters' additive method without a trend: how far its forecast of y was off."""
        smoothing, S = self.spec["blend"]["smoothing"], self.smoothed_season()
        if self.place < S:
            self.profile[self.place] = np.where(error, self.profile.get(self.place - 1, y), y)
            return 0 * y
        off = y - self.level - self.profile[self.place % S]
        moves = max(smoothing["level"], 1 / (self.place - S + 2))
        known = np.where(error, 0.0, off)
        self.level = self.level + moves * known
        share = max(smoothing["profile"], 1 / (self.place // S + 1))
        self.profile[self.place % S] = self.profile[self.place % S] + share * (1 - moves) * known
        return off

    def history(self) -> int:
        spec = self.spec
        if blend := spec["blend"]:
            need = max([*spec["lags"], blend["short"] + blend["long"]])
            return math.ceil(need / blend["short"]) * blend["short"]
        need = max([*spec["lags"], spec["season"] if spec["base"] == "seasonal" else 0, 0])
        return math.ceil(need / spec["season"]) * spec["season"] if spec["season"] else need

    def scaling(self, y: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scaling = self.spec["scaling"]
        if scaling["kind"] == "none":
            return np.zeros_like(y), np.ones_like(y)
        if scaling["kind"] == "fixed":
            return np.array(scaling["loc"]), np.array(scaling["scale"])
        n = np.full(len(y), min(self.seen, scaling["memory"]))
        n[np.isfinite(most)] = scaling["memory"]
        off = np.clip(y - self.loc, -most, most)
        self.loc = self.loc + off / n
        self.var = (1 - 1 / n) * (self.var + off * off / n)
        scale = self.deviation(self.seen)
        return self.loc, np.where(scale > 0, scale, 1.0)

    def deviation(self, seen: int) -> np.ndarray:
        """Of the values so far, and of other series while little is known."""
        n = min(seen, self.spec["scaling"]["memory"])
        expected = (self.spec["scaling"]["prior_ratio"] * self.loc) ** 2
        if seen > 30:
            left = expected / (1 + (seen - 30) / 480) ** 16
            expected = np.minimum(expected, 25 * self.var + left)
        return np.sqrt((n * self.var + 10 * expected) / (n + 10))

    def network(self, x: np.ndarray) -> np.ndarray:
        spec, w = self.spec, self.w
        steps = [x]
        if window := spec.get("window", 0):
            self.h, self.c = np.zeros_like(self.h), np.zeros_like(self.c)
            self.inputs = steps = [*self.inputs, x][-window:]
        for below in steps:
            for n in range(spec["layers"]):
                getattr(self, spec["cell"])(n, below)
                below = self.h[n]
        out = w["head.weight"] @ self.h[-1] + w["head.skip"] @ x + w["head.bias"]
        return act(spec["head_activation"], out)

    def lstm(self, n: int, x: np.ndarray) -> None:
        spec, w = self.spec, self.w
        gates = w[f"lstm.weight_ih_l{n}"] @ x + w[f"lstm.bias_l{n}"]
        gates = gates + w[f"lstm.weight_hh_l{n}"] @ self.h[n]
        i, f, g, o = gates.reshape(4, -1)
        i, f, o = (act(spec["recurrent_activation"], v) for v in (i, f, o))
        self.c[n] = f * self.c[n] + i * act(spec["activation"], g)
        self.h[n] = o * act(spec["activation"], self.c[n])

    def gru(self, n: int, x: np.ndarray) -> None:
        spec, w, h = self.spec, self.w, self.h[n]
        after = spec["reset_after"]
        wr, wz, wn = np.split(w[f"gru.weight_ih_l{n}"], 3)
        ur, uz, un = np.split(w[f"gru.weight_hh_l{n}"], 3)
        br, bz, bn = np.split(w[f"gru.bias_{'ih_' * after}l{n}"], 3)
        hr, hz, hn = np.split(w[f"gru.bias_hh_l{n}"], 3) if after else (0, 0, 0)
        r = act(spec["recurrent_activation"], wr @ x + br + ur @ h + hr)
        z = act(spec["recurrent_activation"], wz @ x + bz + uz @ h + hz)
        product = r * (un @ h + hn) if after else un @ (r * h)
        new = act(spec["activation"], wn @ x + bn + product)
        self.h[n] = (1 - z) * new + z * h

    def rnn(self, n: int, x: np.ndarray) -> None:
        w = self.w
        sums = w[f"rnn.weight_ih_l{n}"] @ x + w[f"rnn.weight_hh_l{n}"] @ self.h[n]
        self.h[n] = act(self.spec["activation"], sums + w[f"rnn.bias_l{n}"])

    def taught_steps(self) -> dict[int, dict[str, Any]]:
        """What is known of each learned step; see streamlstm.adapt."""
        K, T, D = self.spec["horizon"], self.spec["targets"], self.spec.get("directions", 0)
        blend = self.spec["blend"] or {"short": 1, "long": 1}
        seasons = [self.spec["season"] or 1, blend["short"], blend["long"]]
        taught = {}
        for k in sorted({1, (K + 1) // 2, K}) if D else []:
            apart = next(n for n in range(k, 1 << 20) if math.gcd(n, math.prod(seasons)) == 1)
            taught[k] = {
                "apart": apart, "memory": max(25, 250 / apart), "example": None,
                "theta": np.zeros((T, 1 + D)),
                "usual": np.zeros(T), "answers": np.zeros(T, int), "used": np.zeros(T),
                "mean": np.zeros((T, 2)), "square": np.zeros((T, 2)),
                "lately": np.zeros(T), "less": np.zeros(T), "longer": np.zeros(T),
                "fallen": np.zeros(T, bool),
            }  # fmt: skip
        return taught

    def correction(
        self, y: np.ndarray, point: np.ndarray, scale: np.ndarray, directions: np.ndarray
    ) -> np.ndarray:
        """What is added to the forecast (horizon, targets); learns from ``y`` first."""
        steps, amounts = [*self.taught], []
        z = np.array([1.0, *directions])
        for k, of in self.taught.items():
            if of["example"] and self.place - of["example"][0] == k:
                for j in range(len(y)):
                    self.learn(of, j, y[j])
            guess = np.clip(of["theta"] @ z, -2 * of["usual"], 2 * of["usual"])
            if not of["example"] or self.place - of["example"][0] >= of["apart"]:
                of["example"] = self.place, z, point[k - 1].copy(), scale.copy(), guess, y.copy()
            latest = of["fallen"] & np.isfinite(y)
            amounts.append(np.where(latest, y - point[k - 1], of["used"] * guess * scale))
        if not steps:
            return np.zeros_like(point)
        every = np.arange(1, len(point) + 1)
        return np.stack([np.interp(every, steps, c) for c in np.array(amounts).T], axis=1)

    @staticmethod
    def learn(of: dict[str, Any], j: int, y: float) -> None:
        _, z, frozen, scale, guess, before = of["example"]
        error = (y - frozen[j]) / scale[j]
        if not abs(error) < 1e9:
            return
        n, memory = of["answers"][j] + 1, of["memory"]
        of["answers"][j] = min(n, 250)
        size = min(abs(error), 10 * of["usual"][j]) if n > 20 else abs(error)
        usual = of["usual"][j] = of["usual"][j] + (size - of["usual"][j]) / min(n, memory)
        if usual == 0:
            return

        def loss(e: float) -> float:
            return e * e / (2 * usual) if abs(e) <= usual else abs(e) - usual / 2

        model, naive = abs(error - of["used"][j] * guess[j]), abs(y - before[j]) / scale[j]
        if naive < 1e9:
            share = 1 / min(of["answers"][j], 5)
            of["lately"][j] += share * (model - of["lately"][j])
            off = (model - naive) / (model + naive + usual)
            of["less"][j] += share * (off - of["less"][j])
            worse = np.clip((model * 2 / 3 - naive) / usual, -2, 2)
            of["longer"][j] += (worse - of["longer"][j]) / min(n, 25)
            if of["less"][j] <= 0:
                of["fallen"][j] = False
            elif n > 20 and (
                of["longer"][j] > 0 or (of["lately"][j] > 3 * usual and of["less"][j] > 1 / 3)
            ):
                of["fallen"][j] = True
        doubt = 1 if of["used"][j] else 2
        sure = []
        for n, share in enumerate((0.5, 1.0)):
            gain = (loss(error) - loss(error - share * guess[j])) / usual
            of["mean"][j, n] += (gain - of["mean"][j, n]) / memory
            of["square"][j, n] += (gain**2 - of["square"][j, n]) / memory
            sure.append(of["mean"][j, n] - doubt * math.sqrt(2 * of["square"][j, n] / memory))
        of["used"][j] = (0.5, 1.0)[int(np.argmax(sure))] if max(sure) > 0 else 0.0
        left = np.clip(error - of["theta"][j] @ z, -usual, usual)
        of["theta"][j] += 0.001 * left * z / (1 + 0.001 * (z @ z))

    def unit(self, scale: np.ndarray) -> np.ndarray:
        """What half-widths are in units of: three quarters what the scale usually is."""
        count = min(self.place + 1, 1000) if self.seen > 1 else 1
        self.mean_scale = self.mean_scale + (scale - self.mean_scale) / count
        return 0.75 * self.mean_scale + 0.25 * scale

    def pace(self, k: int, j: int, error: float, half: float) -> float:
        """The rate at which a half-width moves."""
        rate, run = self.paces.get((k, j), (0.0, 0))
        run = 0 if error <= half else run + (error > half)
        if run >= k * math.ceil(math.log(1e-4) / math.log(1 - self.coverage) - 1e-9):
            rate = 0.4 / k
        elif rate > 0.02:
            rate *= 1 - 0.02 / k
        self.paces[k, j] = rate, run
        return max(rate, 0.02) + 2 / (10 * (k + 1) + self.errors[k, j][0])

    def take_in(self, k: int, j: int, error: float) -> float:
        """Take in an error, in units and those of the spread; how much larger they are of late."""
        count, late, usual = self.errors.get((k, j), (0, 0.0, 0.0))
        error = min(error, 10 * usual) if count > 20 and usual > 0 else error
        count = min(count + 1, 1000)
        late += (error - late) / min(count, 20)
        usual += (error - usual) / count
        misses = self.paces.get((k, j), (0.0, 0))[1]
        if misses >= k * math.ceil(math.log(1e-4) / math.log(1 - self.coverage) - 1e-9):
            count, usual = min(count, 20), late
        self.errors[k, j] = count, late, usual
        return 2 * (late - usual) / (late + usual)

    def interval(self, y: np.ndarray, unit: np.ndarray, told: np.ndarray) -> np.ndarray:
        """Half-widths (horizon, targets) in units; learns from ``y`` first."""
        K, T, cover = self.spec["horizon"], self.spec["targets"], self.coverage
        steps = sorted({1, (K + 1) // 2, K})
        if self.width is None:
            self.width = np.full((len(steps), T), np.nan)
            self.share = np.tile([0.5, 0.25], (len(steps), T, 1))
            self.unrest = np.zeros((len(steps), T))
            if "errors.levels" in self.w:
                for a, k in enumerate(steps):
                    for j in range(T):
                        column = self.w["errors.quantiles"][:, (k - 1) * T + j]
                        self.width[a, j] = np.interp(cover, self.w["errors.levels"], column)
        unrest = self.unrest.copy()
        for a, k in enumerate(steps):
            if self.place - k in self.made:
                point, half, spread, before = self.made[self.place - k]
                for j, error in enumerate(abs(y - point[k - 1])):
                    w, share = self.width[a, j], self.share[a, j]
                    said = np.rint(64 * np.array([spread[k - 1, j], before[a, j]])) / 64
                    off = error / unit[j] / math.exp(share[0] * said[0])
                    unrest[a, j] = self.take_in(k, j, off)
                    rate = self.pace(k, j, error, half[k - 1, j])
                    if not math.isnan(half[k - 1, j]):
                        missed = cover - (error <= half[k - 1, j])
                        share = np.clip(share + np.array([0.05, 0.02]) * missed * said, 0, 1)
                        self.share[a, j] = share
                    if error <= half[k - 1, j]:
                        w *= math.exp(rate * (cover - 1))
                        self.width[a, j] = w if w >= 1e-9 else 0.0
                    elif not w > 0:
                        self.width[a, j] = error / (unit[j] * math.exp(share @ said))
                    elif error > half[k - 1, j]:
                        self.width[a, j] = w * math.exp(rate * cover)
        self.unrest = unrest
        wide = self.width * np.exp(self.share[..., 1] * unrest)
        every = np.arange(1, K + 1)
        half = np.stack([np.interp(every, steps, wide[:, j]) for j in range(T)], axis=1)
        if "errors.levels" in self.w:
            for k in every - 1:
                for j in range(T):
                    known = np.array([
                        np.interp(cover, self.w["errors.levels"], column)
                        for column in self.w["errors.quantiles"][:, j::T].T
                    ])  # fmt: skip
                    line = np.interp(k + 1, steps, known[np.array(steps) - 1])
                    half[k, j] *= known[k] / line
        used = [np.interp(every, steps, self.share[:, j, 0]) for j in range(T)]
        return half * np.exp(np.stack(used, axis=1) * told)
