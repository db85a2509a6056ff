"""What may be chosen of a fit, in one place: Python, command line and model file read it here."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamlstm.config import ConfigError
from streamlstm.model import CalendarName, Spec


class FitOptions(BaseModel):
    """Options of :func:`streamlstm.train.fit`; None: inferred from the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    horizon: int = Field(default=24, ge=1, le=4096, description="steps ahead to forecast")
    season: int | None = Field(
        default=None, ge=0, le=1_000_000, description="steps after which a series repeats; 0: none"
    )
    lags: tuple[Annotated[int, Field(ge=1, le=1_000_000)], ...] | None = Field(
        default=None, description="past values shown to the model, in steps: 1,2,24"
    )
    calendar: tuple[CalendarName, ...] | None = Field(
        default=None, description="phases shown to the model: hour,week,year"
    )
    timezone: str = Field(default="UTC", description="time zone of the calendar")
    memory: int | None = Field(
        default=None, ge=1, le=100_000_000, description="ticks that the running scaling looks back"
    )
    elapsed: bool | None = Field(
        default=None, description="show the model the time since the tick before"
    )
    floor: Annotated[float, Field(allow_inf_nan=False)] | Literal["none"] | None = Field(
        default=None, description="no forecast lies below; or none"
    )
    hidden: int = Field(default=32, ge=1, le=4096, description="units of a layer")
    layers: int = Field(default=1, ge=1, le=16, description="LSTM layers")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="share of units dropped between layers"
    )
    head_dropout: float = Field(
        default=0.5, ge=0, lt=1, description="share of units dropped before the head"
    )
    directions: int | None = Field(
        default=None,
        ge=0,
        le=4096,
        description="numbers that a series learns from on the stream; 0: it learns nothing",
    )
    spread: bool = Field(default=True, description="say with each forecast how far it may err")
    loss: Literal["mse", "mae", "huber"] = Field(default="mae", description="mse, mae or huber")
    updates: int = Field(
        default=600, ge=1, description="updates of the weights, at most, in each of two trainings"
    )
    batch: int = Field(default=64, ge=1, le=65536, description="spans an update learns from")
    chunk: int = Field(default=48, ge=1, le=65536, description="steps that gradients travel back")
    carried: int = Field(default=4, ge=1, description="chunks that a span is long")
    rate: float = Field(default=6e-3, gt=0, description="learning rate, at its highest")
    clip: float = Field(default=1.0, ge=0, description="largest norm of a gradient; 0: any")
    ema: float = Field(default=0.99, ge=0, lt=1, description="memory of the averaged weights")
    decay: float = Field(default=0.0, ge=0, description="weight decay")
    ridge: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="penalty of the linear start"
    )
    validation: float = Field(
        default=0.15, gt=0, lt=1, description="latest share that judges the training"
    )
    patience: int = Field(
        default=0,
        ge=0,
        description="judgements (20 in all) without gain that end the training early; 0: never",
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="of weights, spans and dropout")


def chosen(given: Mapping[str, Any], *, flags: bool = False) -> FitOptions:
    """The options that are given by name; in what is said of them they are called by ``flags``.

    Raises:
        ConfigError: there is no such option, or not with such a value.
    """
    try:
        return FitOptions.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
    name, value = str(first["loc"][0]), first["input"]
    shown = f"--{name.replace('_', '-')} {value}" if flags else f"{name}={value!r}"
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(name, FitOptions.model_fields, 1)
        mend = f"did you mean {close[0]!r}?" if close else "see streamlstm fit --help"
        raise ConfigError(f"{shown}: unknown option; {mend}")
    raise ConfigError(f"{shown}: {first['msg']}")


def ticks_needed(spec: Spec) -> int:
    """Of a series, for a fit of such a model to learn from it."""
    return max(spec.history + 2 * spec.horizon, 4)
