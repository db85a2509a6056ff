"""What a model is: its spec, its weights, how far it erred, and a run that proves it.

How it lies in a file is said by :mod:`streamlstm.model_file`. Where a tick carries more than
targets, ``Spec.roles`` says what each of its values is: :class:`Input`. What becomes of them in the
input vector is said by :mod:`streamlstm.features`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

WIDEST = 65_536
"""Numbers in an input or output vector at most."""
MOST_CATEGORIES = 1024
"""Of an input."""
APART, PHASES = 1.25, 16
"""Of the ages of :attr:`Spec.ages`: each over the one before at least, and how many at most."""
STEPS_SHOWN = 24
"""Steps ahead at which the network is shown what is known ahead, at most."""
Trainable = Literal["tanh", "sigmoid", "relu", "hard_sigmoid", "linear"]
"""Activations that can be fitted, too."""
ActivationName = Literal[
    Trainable, "elu", "exponential", "gelu", "hard_silu", "hard_tanh", "leaky_relu", "log_sigmoid",
    "mish", "relu6", "selu", "silu", "soft_shrink", "softplus", "softsign", "sparse_plus",
    "sparse_sigmoid", "tanh_shrink",
]  # fmt: skip
"""By Keras' names, with its default numbers."""
OfLayers = Annotated[
    Annotated[ActivationName, Tag("all")] | Annotated[tuple[ActivationName, ...], Tag("layer")],
    Discriminator(lambda given: "layer" if isinstance(given, list | tuple) else "all"),
]
"""Of all layers, or of each from the input up."""
CalendarName = Literal["hour", "week", "year"]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


class ModelError(ValueError):
    """A model file that cannot be used; the message is one line and says the mend."""

    def __init__(self, message: str) -> None:
        """What is no printable character, in a key or a name of the file's, is shown escaped."""
        shown = (char if char.isprintable() else repr(char)[1:-1] for char in message)
        super().__init__("".join(shown))


class Scaling(BaseModel):
    """How raw values become the network's inputs: z = (y - loc) / scale, per series and input.

    ``none``: z = y. ``fixed``: ``loc`` and ``scale`` as given, one for each input. ``running``:
    from the series' own past and present alone, exponentially weighted over ``memory`` ticks, with
    a prior worth ten ticks that says a series' deviation is ``prior_ratio`` times its mean, or at
    most five times what the series' own ticks say, once there are some.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["none", "fixed", "running"] = "running"
    loc: tuple[_Finite, ...] = ()
    scale: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    memory: int = Field(default=1000, ge=1, le=100_000_000)
    prior_ratio: float = Field(default=0.1, gt=0, allow_inf_nan=False)


class Smoothing(BaseModel):
    """A level and the profile of a season, which a series keeps of each target.

    Exponential smoothing without a trend (Holt-Winters' additive method; Winters 1960). At a tick y

        off = y - (level + profile[phase])
        level += level_share * off
        profile[phase] += profile_share * (1 - level_share) * off

    and the forecast is the level and the profile at the phase of the step ahead. The first season
    is the profile to begin with, and the level 0. So that a beginning is not believed for long, the
    shares are at least 1 / (2 + steps since the first season) and 1 / (1 + seasons before).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    season: int = Field(ge=1, le=1_000_000, description="in steps")
    level: float = Field(gt=0, le=1, description="level_share")
    profile: float = Field(ge=0, le=1, description="profile_share")


class Blend(BaseModel):
    """A base forecast for each step ahead from four past values, that moves with the latest one.

    With y the latest value, s1 and s2 those at the same phase of the short and the long season as
    the step ahead, and s3 that one long season before s1,

        base = y + w1 (s1 - y) + w2 (s2 - y) + w3 (s1 - s3)

    and with a smoothing, whose forecast is s4, ``+ w4 (s4 - y)``. Where s2 or s4 was never seen s1
    takes its place, so that a new series goes by its days until it has seen a week; a term of which
    there is none is left out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    short: int = Field(ge=1, le=1_000_000, description="season, in steps")
    long: int = Field(ge=1, le=1_000_000, description="season, in steps")
    weights: tuple[tuple[_Finite, ...], ...]
    """w1, w2, w3 of each output, and w4 with a smoothing"""
    smoothing: Smoothing | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        terms = 3 + (self.smoothing is not None)
        if any(len(row) != terms for row in self.weights):
            raise ValueError(f"the blend has {terms} weights for each output")
        return self

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave out what was added later, where there is none: ids of models stay."""
        blend: dict[str, Any] = handler(self)
        if self.smoothing is None:
            del blend["smoothing"]
        return blend


ROLES = ("target", "measured", "known", "number", "category")
"""In the order in which a tick has them."""


class Input(BaseModel):
    """One of a tick's values: what it is called, and what it is to the model.

    ``target``: forecast, and shown to the network. ``measured``: shown. ``known``: known ahead,
    such as a holiday or a price; a tick carries its value ``horizon`` steps after itself, and the
    network is shown it at the tick and at the steps ahead (:attr:`Spec.shown`). ``number`` and
    ``category``: what a series is, the same in each tick; of a category the tick carries the place
    in ``categories``, from 0, and the network is shown a one there and else zeros; of a place that
    there is not, such as -1, zeros alone.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    role: Literal["target", "measured", "known", "number", "category"]
    loc: _Finite = 0.0
    scale: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="of what is known or a number; 0: scaled as the targets are",
    )
    categories: tuple[str, ...] = Field(default=(), max_length=MOST_CATEGORIES)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.role == "category") != bool(self.categories):
            raise ValueError(f"{self.name}: categories go with the role category, and no other")
        if self.scale and self.role not in ("known", "number"):
            raise ValueError(f"{self.name}: a {self.role} has no scale of its own")
        if self.role == "number" and not self.scale:
            raise ValueError(f"{self.name}: a number needs a scale above 0")
        return self


class Spec(BaseModel):
    """What a model is made of; all that training, engine and kernels have to agree on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    reset_after: bool = Field(
        default=True, description="GRU: r scales the product with h (PyTorch), not h itself"
    )
    layers: int = Field(default=1, ge=1, le=16)
    hidden: int = Field(ge=1, le=4096)
    activation: OfLayers = "tanh"
    recurrent_activation: OfLayers = "sigmoid"
    head_activation: ActivationName = "linear"
    window: int = Field(
        default=0, ge=0, le=100_000, description="run the last so many inputs afresh; 0: stateful"
    )
    inputs: int = Field(default=1, ge=1, le=1024, description="values of a tick")
    targets: int = Field(default=1, ge=1, description="the first of them are forecast")
    step_ns: int = Field(
        ge=0, le=10**19 // 10, description="nanoseconds between ticks; 0: not known"
    )
    horizon: int = Field(ge=1, le=4096)
    season: int = Field(default=0, ge=0, le=1_000_000, description="in steps; 0: none")
    base: Literal["none", "last", "seasonal", "blend"] = "last"
    blend: Blend | None = None
    lags: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] = ()
    calendar: tuple[CalendarName, ...] = ()
    timezone: str = "UTC"
    scaling: Scaling = Scaling()
    directions: int = Field(
        default=0, ge=0, le=4096, description="numbers a series learns from on the stream"
    )
    spread: bool = Field(
        default=False, description="say with each forecast how far it may err: a logarithm"
    )
    roles: tuple[Input, ...] = Field(
        default=(),
        description="of the values of a tick, in the order of ROLES; none: they have no names, the"
        " first are the targets, the others measured",
    )
    elapsed_ns: int = Field(
        default=0,
        ge=0,
        le=10**19 // 10,
        description="unit of the time since the tick before, whose log is shown; 0: it is not",
    )
    floor: _Finite | None = Field(
        default=None, description="forecasts and the ends of their intervals never lie below"
    )

    @property
    def width(self) -> int:
        """Length I of the input vector: see :mod:`streamlstm.features`."""
        return (
            self.measured
            + len(self.lags) * self.targets
            + 4 * len(self.calendar)
            + bool(self.elapsed_ns)
            + bool(self.smoothing) * self.targets
            + len(self.shown) * len(self.of_role("known"))
            + len(self.of_role("number"))
            + sum(self.categories)
        )

    @property
    def smoothing(self) -> Smoothing | None:
        """What a series keeps for its base forecast, if it does."""
        return self.blend.smoothing if self.blend else None

    @property
    def activations(self) -> tuple[tuple[ActivationName, ActivationName], ...]:
        """Of each layer: its activation, and that of its gates."""
        own, recurrent = (
            (each,) * self.layers if isinstance(each, str) else each
            for each in (self.activation, self.recurrent_activation)
        )
        return tuple(zip(own, recurrent, strict=True))

    def of_role(self, role: str) -> tuple[Input, ...]:
        """The inputs that have this role."""
        return tuple(each for each in self.roles if each.role == role)

    @property
    def measured(self) -> int:
        """How many of a tick's values, its first, are targets or measured."""
        return sum(each.role in ROLES[:2] for each in self.roles) if self.roles else self.inputs

    @property
    def categories(self) -> tuple[int, ...]:
        """How many there are of each category."""
        return tuple(len(each.categories) for each in self.of_role("category"))

    @property
    def shown(self) -> tuple[int, ...]:
        """Steps from the tick at which known inputs are shown: 0, then evenly up to the horizon."""
        few = min(self.horizon, STEPS_SHOWN)
        return (0, *(round(1 + k * (self.horizon - 1) / max(1, few - 1)) for k in range(few)))

    @property
    def outputs(self) -> int:
        """Forecasts O of a tick."""
        return self.horizon * self.targets

    @property
    def answers(self) -> int:
        """Length N of the network's output vector: forecasts, their spreads, directions."""
        return self.outputs * (1 + self.spread) + self.directions

    @property
    def scored(self) -> tuple[int, ...]:
        """Steps ahead scored on the stream unless others are asked for: first, middle and last."""
        return tuple(sorted({1, (self.horizon + 1) // 2, self.horizon}))

    @property
    def history(self) -> int:
        """How many past values of each target the features look back on."""
        if self.blend is not None:
            need = max((*self.lags, self.blend.short + self.blend.long))
            return -(-need // self.blend.short) * self.blend.short
        need = max((*self.lags, self.season if self.base == "seasonal" else 0, 0))
        # whole seasons, so that a place left unwritten in a gap holds the same phase
        return -(-need // self.season) * self.season if self.season else need

    @property
    def ages(self) -> tuple[int, ...]:
        """How far back forecasts look, in steps: at such ages a phase of a series' youth ends.

        The least far is taken in quarters: of what lies so far back a forecast far ahead knows
        sooner than one near by. What is less than ``APART`` times as far as another ends no further
        phase.
        """
        looks = {max(self.lags, default=0)}
        if self.blend is not None:
            looks |= {self.blend.short, self.blend.long, self.blend.short + self.blend.long}
        elif self.base == "seasonal":
            looks.add(self.season)
        least = min((look for look in looks if look > 1), default=0)
        looks |= {least // 4, least // 2, least * 3 // 4}
        ages: list[int] = []
        for look in sorted(look for look in looks if look > 1):
            if not ages or look >= APART * ages[-1]:
                ages.append(look)
        return tuple(ages)

    @property
    def states(self) -> tuple[str, ...]:
        """Which recurrent states a run leaves behind, of ``h`` and ``c``."""
        if self.window:
            return ()
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @model_serializer(mode="wrap")
    def _without_what_does_not_apply(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Leave out options added later, where they change nothing: ids of models stay."""
        spec: dict[str, Any] = handler(self)
        if self.cell != "gru":
            del spec["reset_after"]
        for name in ("window", "directions", "spread", "roles", "elapsed_ns"):
            if not spec[name]:
                del spec[name]
        if spec["floor"] is None:
            del spec["floor"]
        return spec

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for each in (self.activation, self.recurrent_activation):
            if not isinstance(each, str) and len(each) != self.layers:
                raise ValueError(f"{len(each)} activations, but layers: {self.layers}")
        if self.targets > self.inputs:
            raise ValueError(f"targets ({self.targets}) exceed inputs ({self.inputs})")
        if self.roles:
            self._check_roles()
        for what, numbers in (("inputs and lags", self.width), ("forecasts", self.answers)):
            if numbers > WIDEST:
                raise ValueError(f"{numbers:,} {what} a tick; {WIDEST:,} at most")
        if (self.directions or self.spread) and self.head_activation != "linear":
            raise ValueError("directions and spread need a linear head_activation")
        if self.base == "seasonal" and not self.season:
            raise ValueError("base 'seasonal' needs a season of at least 1 step")
        if (self.base == "blend") != (self.blend is not None):
            raise ValueError("base 'blend' goes with a blend, and no other does")
        if self.blend is not None and len(self.blend.weights) != self.outputs:
            raise ValueError(f"the blend has weights for {len(self.blend.weights)} outputs")
        if self.scaling.kind == "fixed" and not (
            len(self.scaling.loc) == len(self.scaling.scale) == self.inputs
        ):
            raise ValueError(f"fixed scaling needs {self.inputs} loc and scale values")
        try:
            ZoneInfo(self.timezone)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"unknown time zone {self.timezone!r}") from error
        return self

    def _check_roles(self) -> None:
        names = [each.name for each in self.roles]
        order = [ROLES.index(each.role) for each in self.roles]
        if len(names) != self.inputs or len(self.of_role("target")) != self.targets:
            raise ValueError(f"roles of {len(names)} values, the model takes {self.inputs}")
        if order != sorted(order):
            raise ValueError(f"roles come in this order: {', '.join(ROLES)}")
        if len({*names}) < len(names):
            raise ValueError("two inputs have one name")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight tensor."""
        H, N, I = self.hidden, self.answers, self.width  # noqa: E741
        rows = {"lstm": 4, "gru": 3, "rnn": 1}[self.cell] * H
        apart = self.cell == "gru" and self.reset_after
        shapes: dict[str, tuple[int, ...]] = {}
        for n in range(self.layers):
            shapes[f"{self.cell}.weight_ih_l{n}"] = (rows, H if n else I)
            shapes[f"{self.cell}.weight_hh_l{n}"] = (rows, H)
            for name in ("bias_ih", "bias_hh") if apart else ("bias",):
                shapes[f"{self.cell}.{name}_l{n}"] = (rows,)
        return shapes | {"head.weight": (N, H), "head.bias": (N,), "head.skip": (N, I)}


def without(
    spec: Spec, weights: Mapping[str, NDArray[np.float32]], *, spread: bool, directions: bool
) -> tuple[Spec, dict[str, NDArray[np.float32]]]:
    """Of a network that gives no spreads, or no directions: those that are not wanted are True."""
    kept = np.ones(spec.answers, np.bool_)
    if spread and spec.spread:
        kept[spec.outputs : 2 * spec.outputs] = False
    if directions:
        kept[spec.answers - spec.directions :] = False
    fewer = {
        name: array[kept] if name.startswith("head.") else array for name, array in weights.items()
    }
    left = {"spread": spec.spread and not spread, "directions": spec.directions * (not directions)}
    return spec.model_copy(update=left), fewer


@dataclass(frozen=True)
class Golden:
    """A run of the network from a zero state that every backend must repeat."""

    inputs: NDArray[np.float32]
    """(T, I)"""
    outputs: NDArray[np.float64]
    """(T, O)"""
    states: Mapping[str, NDArray[np.float32]]
    """(layers, H) each, those of :attr:`Spec.states`"""


@dataclass(frozen=True)
class Errors:
    """How far forecasts were off, on data not trained on above all: where intervals begin."""

    levels: NDArray[np.float64]
    """(Q,) rising probabilities"""
    quantiles: NDArray[np.float32]
    """(Q, O) quantiles of |error| in the units of :mod:`~streamlstm.intervals`; with a spread, over
    its root"""
    ages: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """(P,) rising: the ages that end a phase of a series' youth, see :attr:`Spec.ages`; of age 1 is
    a series at its first place"""
    young: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    """(P, Q, O) the quantiles in each of these phases, of data trained on; 0: not known"""
    seen: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """(O,) mean |error| on data trained on, in the same units, or none; 0: not known"""

    def at(self, level: float) -> NDArray[np.float32]:
        """(O,) the quantile at ``level``, linear between the levels kept, and from 0 on."""
        return self._between(level, self.quantiles)

    def young_at(self, level: float) -> NDArray[np.float32]:
        """(P, O) likewise in each phase of a series' youth."""
        phases = [self._between(level, quantiles) for quantiles in self.young]
        return np.array(phases, np.float32).reshape(-1, self.quantiles.shape[1])

    def _between(self, level: float, quantiles: NDArray[np.float32]) -> NDArray[np.float32]:
        levels, last = self.levels, len(self.levels) - 1
        if level < levels[0]:
            return (quantiles[0] * (level / levels[0])).astype(np.float32)
        at = min(max(int(np.searchsorted(levels, level, side="right")) - 1, 0), last)
        below = quantiles[at].astype(np.float64)
        if not levels[at] < level < levels[-1]:
            return below.astype(np.float32)
        slope = (quantiles[at + 1] - below) / (levels[at + 1] - levels[at])
        between: NDArray[np.float32] = (slope * (level - levels[at]) + below).astype(np.float32)
        return between


@dataclass(frozen=True)
class Model:
    """A parsed model file."""

    spec: Spec
    weights: Mapping[str, NDArray[np.float32]]
    golden: Golden
    errors: Errors | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """12 hex digits over spec and weights: what predictions and checkpoints name."""
        digest = hashlib.sha256(self.spec.model_dump_json().encode())
        for name in self.spec.weight_shapes():
            digest.update(self.weights[name].tobytes())
        return digest.hexdigest()[:12]

    @property
    def fitted_until(self) -> int:
        """The last second of what it was fitted on, ns; before all times where it does not say."""
        try:
            said = datetime.fromisoformat(str(self.provenance["to"]))
        except (KeyError, ValueError):
            return int(np.iinfo(np.int64).min)
        return int(said.timestamp()) * 1_000_000_000
