"""msgpack: the fields of :mod:`streamlstm.wire.maps` as MessagePack."""

from typing import Any

import msgspec

from streamlstm.wire.maps import Fields, MapReader, MapWriter, Prediction


class _Tick(Fields, gc=False, kw_only=True):
    ts: float | int | str | None = None


_DECODER = msgspec.msgpack.Decoder(_Tick)
_ENCODER = msgspec.msgpack.Encoder()


class MsgpackReader(MapReader):
    """Takes a double for the shortest decimal that denotes it."""

    def parse(self, payload: bytes) -> Any:
        """As :meth:`MapReader.parse`."""
        return _DECODER.decode(payload)


class MsgpackWriter(MapWriter):
    """Writes doubles."""

    def payload(self, prediction: Prediction) -> bytes:
        """As :meth:`MapWriter.payload`."""
        return _ENCODER.encode(prediction)
