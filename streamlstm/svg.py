"""Line charts as inline SVG, drawn by hand: no library, nothing fetched."""

from html import escape
from math import floor, log10

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
WIDTH, HEIGHT = 460, 270
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 26, 58
"""Margins of the plot; legend and label of the axis lie below it."""
_LETTER = 6.0
"""Width of one in the legend, about."""


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """At most ``most`` multiples, of 1, 2 or 5 times a power of ten, from ``low`` to ``high``."""
    span = high - low
    step = 10.0 ** floor(log10(span / most))
    step *= next((f for f in (1, 2, 5, 10) if floor(span / (f * step)) < most), 10)
    first = np.ceil(low / step - 1e-9)
    last = np.floor(high / step + 1e-9)
    return [float(n * step) + 0.0 for n in np.arange(first, last + 1)]


class Chart:
    """Curves over one axis; what is not finite is left out of them.

    Attributes:
        title, x_label, from_zero: as given.
        curves: (n,) places along the axis, lower and upper ends, the same of a line; colour; and
            how it is drawn: ``band``, or the dashes of a line.
        legend: label, colour, and whether it is of a band.
    """

    def __init__(self, title: str, x_label: str, *, from_zero: bool = False) -> None:
        """``from_zero``: the vertical axis begins there."""
        self.title, self.x_label, self.from_zero = title, x_label, from_zero
        self.curves: list[tuple[Floats, Floats, Floats, str, str]] = []
        self.legend: list[tuple[str, str, bool]] = []

    def line(self, x: Floats, y: Floats, colour: str, label: str = "", dashes: str = "") -> None:
        """Join points (n,) that follow one another; ``dashes`` as ``stroke-dasharray`` has them."""
        self.curves.append((x, y, y, colour, dashes))
        if label:
            self.legend.append((label, colour, False))

    def band(self, x: Floats, lower: Floats, upper: Floats, colour: str, label: str = "") -> None:
        """Fill between two curves (n,)."""
        self.curves.append((x, lower, upper, colour, "band"))
        if label:
            self.legend.append((label, colour, True))

    def svg(self) -> str:
        """The element."""
        x = np.concatenate([curve[0] for curve in self.curves])
        y = np.concatenate([part for curve in self.curves for part in curve[1:3]])
        (left, right), (low, high) = _range(x), _range(y)
        low = min(low, 0.0) if self.from_zero else low
        margin = 0.04 * (high - low)
        low, high = low if self.from_zero and low == 0 else low - margin, high + margin
        across, down = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

        def at_x(value: Floats | float) -> Floats:
            return np.asarray(LEFT + (value - left) / (right - left) * across)

        def at_y(value: Floats | float) -> Floats:
            return np.asarray(TOP + (high - value) / (high - low) * down)

        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title)}"'
            ' font-family="sans-serif" font-size="11">',
            _text(LEFT, 15, self.title, "start", ' font-size="13" font-weight="600"'),
        ]
        for value in round_numbers(low, high, 6):
            to = at_y(value)
            parts.append(
                f'<path stroke="#e4e4e4" d="M{LEFT} {to:.1f}H{WIDTH - RIGHT}"/>'
                + _text(LEFT - 6, to + 4, f"{value:,.5g}", "end")
            )
        for value in round_numbers(left, right, 8):
            parts.append(_text(at_x(value), HEIGHT - BOTTOM + 16, f"{value:,.5g}", "middle"))
        parts.append(_text(LEFT + across / 2, HEIGHT - BOTTOM + 32, self.x_label, "middle"))
        for xs, lower, upper, colour, how in self.curves:
            for run in _runs(np.isfinite(lower) & np.isfinite(upper)):
                points = _points(at_x(xs[run]), at_y(upper[run]))
                if how == "band":
                    points += " " + _points(at_x(xs[run])[::-1], at_y(lower[run])[::-1])
                    parts.append(
                        f'<polygon fill-opacity="0.22" fill="{colour}" points="{points}"/>'
                    )
                elif run.stop - run.start == 1:
                    to_x, to_y = points.split(",")
                    parts.append(f'<circle cx="{to_x}" cy="{to_y}" r="2" fill="{colour}"/>')
                else:
                    dashes = f' stroke-dasharray="{how}"' if how else ""
                    parts.append(
                        f'<polyline fill="none" stroke-width="1.6" stroke="{colour}"{dashes}'
                        f' points="{points}"/>'
                    )
        begin = float(LEFT)
        for label, colour, filled in self.legend:
            height, band = (9, ' fill-opacity="0.5"') if filled else (3, "")
            parts.append(
                f'<rect x="{begin:.0f}" y="{HEIGHT - 10 - height / 2}" width="14"'
                f' height="{height}" fill="{colour}"{band}/>'
                + _text(begin + 18, HEIGHT - 6, label, "start")
            )
            begin += 18 + _LETTER * len(label) + 12
        return "".join([*parts, "</svg>"])


def _range(values: Floats) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.5 * abs(low) or 0.5
        return low - margin, high + margin
    return low, high


def _runs(known: NDArray[np.bool_]) -> list[slice]:
    """Where those that are known follow one another."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], known.astype(np.int8), [0]))))
    return [slice(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def _points(x: Floats, y: Floats) -> str:
    return " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _text(x: Floats | float, y: Floats | float, text: str, anchor: str, style: str = "") -> str:
    at = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {at} fill="#333"{style}>{escape(text)}</text>'
