"""What is around the network, in words: what its input is made of, and what becomes of its output.

An exported network is the network alone. Who runs it elsewhere has to do what the daemon does
(:mod:`streamlstm.features`), and finds here what that is for the model at hand.
"""

from streamlstm.features import ENOUGH, FAR, FARTHEST_APART, FEW, PRIOR, WITHIN
from streamlstm.model import Spec

_CALENDAR = {
    "hour": "the day (86,400 s)",
    "week": "the week (604,800 s, from a Thursday's midnight)",
    "year": "the year (31,556,952 s)",
}
_NS = 1e9


def described(spec: Spec) -> list[str]:
    """Paragraphs on input vector and forecast; lines that start with ``x[`` are of a list."""
    return [*_inputs(spec), *_scaling(spec), *_forecast(spec)]


def _inputs(spec: Spec) -> list[str]:
    names = [each.name for each in spec.roles] or [f"value {i}" for i in range(spec.inputs)]
    lines = [
        f"Input: x, float32, {_count(spec.width, 'number')} a tick of a series."
        f" A tick has {_count(spec.inputs, 'value')}, in this order: {', '.join(names)};"
        f" the first {_count(spec.targets, 'is a target', 'are targets')}, which are forecast."
    ]
    at = 0

    def part(count: int, what: str) -> None:
        nonlocal at
        if count:
            lines.append(f"x[{at}:{at + count}] {what}")
            at += count

    part(spec.measured, f"(value - loc) / scale of {', '.join(names[: spec.measured])}")
    part(
        len(spec.lags) * spec.targets,
        f"for each lag of {_listed(spec.lags)} steps, of each target y: (y lag steps before the"
        " tick - y at the tick) / scale, 0 where the series began later; a step without a tick"
        f" holds what stood {spec.history} steps before it, or else the latest value",
    )
    phases = ", ".join(_CALENDAR[name] for name in spec.calendar)
    part(
        4 * len(spec.calendar),
        f"for each of {phases}: sin a, cos a, sin 2a, cos 2a, with a = 2 pi times how much of it"
        f" has passed at the tick, in the local time of {spec.timezone}, since 1970",
    )
    part(
        bool(spec.elapsed_ns),
        f"natural logarithm of the time since the tick before / {spec.elapsed_ns / _NS:g} s"
        f"{', rounded to whole steps' if spec.step_ns else ''}, within {FARTHEST_APART:g} of 0;"
        " 0 at the first tick",
    )
    if smoothing := spec.smoothing:
        part(
            spec.targets,
            "of each target: off / scale, with off = y - (level + profile at the tick's phase in"
            f" {smoothing.season} steps) before that is taken in: in the first season off is 0, and"
            " y the profile there; then, t steps after its end, with"
            f" a = max({smoothing.level!r}, 1 / (t + 2)), level += a off, from 0, and with"
            f" b = max({smoothing.profile!r}, 1 / (seasons before + 1)), the profile there"
            " += b (1 - a) off; a phase without a tick in the first season holds what the one"
            " before it does, and an error is not taken in",
        )
    for each in spec.of_role("known"):
        own = f"loc {each.loc!r}, scale {each.scale!r}" if each.scale else "loc and scale as below"
        part(
            len(spec.shown),
            f"(value - loc) / scale of {each.name} as it will be {_listed(spec.shown)} steps after"
            f" the tick ({own}); a tick carries the value {spec.horizon} steps after itself,"
            " and what was not told is taken to be what was told next",
        )
    for each in spec.of_role("number"):
        part(1, f"(value - {each.loc!r}) / {each.scale!r} of {each.name}")
    for each in spec.of_role("category"):
        part(
            len(each.categories),
            f"1 at the place of the series' {each.name}, else 0: {', '.join(each.categories)}",
        )
    return lines


def _scaling(spec: Spec) -> list[str]:
    scaling = spec.scaling
    if scaling.kind == "none":
        return ["Scaling: none, loc is 0 and scale is 1."]
    if scaling.kind == "fixed":
        loc, scale = _listed(scaling.loc), _listed(scaling.scale)
        return [f"Scaling: of the values of a tick in their order, loc is {loc}; scale is {scale}."]
    n, doubt = f"min(n, {scaling.memory})", ""
    if spec.history > FEW:
        doubt = (
            f" A target's value whose d is beyond {FAR:g} scale, as that was before it, after"
            f" {ENOUGH} ticks, is taken for an error, unless the {FEW} before it were that far off"
            f" too: its d is cut to {FAR / 2:g} scale, with a = 1 / {scaling.memory}, and where a"
            " later one is none, that takes its place among the values that are looked back to."
        )
    return [
        "Scaling: loc and scale are a series' own, of each value of a tick. At its n-th tick, n"
        f" from 1, with a = 1 / {n} and d = value - loc: loc += a d, then"
        " variance = (1 - a) (variance + a d^2), both 0 at first;"
        f" scale^2 = (m variance + {PRIOR:g} p) / (m + {PRIOR:g}) with m = {n} and"
        f" p = q, after {ENOUGH} ticks the smaller one of q and {WITHIN:g} variance + q /"
        f" (1 + (n - {ENOUGH}) / {16 * ENOUGH})^16, with q = ({scaling.prior_ratio!r} loc)^2;"
        f" scale = 1 where that is 0. Only then is the value scaled.{doubt} Of targets and of"
        f" what is measured no number of x lies beyond {FAR:g}: that is put in its place."
    ]


def _forecast(spec: Spec) -> list[str]:
    lines = [
        f"Output: {_count(spec.outputs, 'number')} a tick; number k * {spec.targets} + j, both"
        " from 0, is of target j at k + 1 steps after the tick."
        f" The forecast is base + scale * output, scale being the target's, with {_base(spec)}."
    ]
    if spec.floor is not None:
        lines.append(f"No forecast lies below {spec.floor!r}: that is put in its place.")
    if spec.step_ns:
        lines.append(f"A step is {spec.step_ns / _NS:g} s; ticks go to the nearest of the grid.")
    if spec.window:
        lines.append(
            f"Window: at each tick the last {spec.window} input vectors, or as many as there have"
            " been, are run from a zero state, and the last output counts."
        )
    else:
        lines.append("State: zero before the first tick of a series, then carried on for ever.")
    lines.append(
        "What the daemon learns of each series on the stream, intervals too, is not in here."
    )
    return lines


def _base(spec: Spec) -> str:
    if spec.base == "none":
        return "base = loc of the target"
    if spec.base == "last":
        return "base = y, the target's value at the tick"
    if spec.base == "seasonal":
        return (
            f"base = the target's value {spec.season} steps before the step ahead, y at the tick"
            " where there is none, and repeated farther ahead than that"
        )
    assert spec.blend is not None
    fourth, what = "", ""
    if spec.smoothing:
        fourth, what = " + w4 (s4 - y)", ", s4 level + profile there"
    return (
        f"base = y + w1 (s1 - y) + w2 (s2 - y) + w3 (s1 - s3){fourth}, y the target's value at the"
        f" tick, s1 the latest at the phase of the step ahead in {spec.blend.short} steps, s2 that"
        f" in {spec.blend.long}, s3 that {spec.blend.long} steps before s1{what}; where s2"
        f"{' or s4' * bool(fourth)} was never seen s1 takes its place, and a term of which there is"
        " none is left out; these weights of each output are in the metadata of the"
        " file, under spec, blend, weights"
    )


def _count(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def _listed(numbers: tuple[float, ...]) -> str:
    return ", ".join(map(repr, numbers))
