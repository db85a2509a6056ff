"""json: the fields of :mod:`streamlstm.wire.maps` as JSON (RFC 8259)."""

import json
from typing import Any

import msgspec
from msgspec import Raw

from streamlstm.wire.maps import Fields, MapReader, MapWriter, Prediction


class _Tick(Fields, gc=False, kw_only=True):
    ts: Raw = Raw(b"")  # the text: a double would lose digits


_DECODER = msgspec.json.Decoder(_Tick)
_ENCODER = msgspec.json.Encoder()


class JsonReader(MapReader):
    """Takes NaN and Infinity, which are not JSON but what Python writes, for null."""

    def parse(self, payload: bytes) -> Any:
        """As :meth:`MapReader.parse`."""
        try:
            return _DECODER.decode(payload)
        except msgspec.DecodeError:
            if b"NaN" not in payload and b"Infinity" not in payload:
                raise
        lenient = json.loads(payload, parse_float=lambda text: Raw(text.encode()))
        if isinstance(lenient, dict) and isinstance(lenient.get("ts"), float):
            lenient["ts"] = "NaN"  # is no time
        return _DECODER.decode(_ENCODER.encode(lenient))


class JsonWriter(MapWriter):
    """Writes numbers with as many digits as tell them apart."""

    def payload(self, prediction: Prediction) -> bytes:
        """As :meth:`MapWriter.payload`."""
        return _ENCODER.encode(prediction)
