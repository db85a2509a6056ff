"""A file that Keras saved, read with h5py alone: its layers and their arrays.

A file holds two things:

- what the layers are, as JSON: ``config.json`` of a ``.keras`` archive, the attribute
  ``model_config`` of an ``.h5`` file. Of weights alone the shapes have to say it;
- their arrays, by the class and number of a layer (Keras 3: ``layers/lstm_1/cell/vars/0``) or by
  its name (Keras 2, and all whole ``.h5`` files: ``model_weights/NAME`` with a list of names).
"""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from streamlstm.importers.parts import RefusedError

LARGEST_CONFIG = 1 << 26
"""Bytes of JSON at most."""
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}
DROPPED = (
    "Dropout",
    "SpatialDropout1D",
    "GaussianNoise",
    "GaussianDropout",
    "AlphaDropout",
    "ActivityRegularization",
)
"""They do nothing once a model is fitted."""
PLACES = ("layers", "_layer_checkpoint_dependencies")
"""Groups of places, the latter in files of Keras 2.12."""
RUNS = "streamlstm runs stacked LSTM, GRU or SimpleRNN layers and a Dense head"
MEND_WHOLE = "save the whole model: model.save('model.keras')"


class Layer(NamedTuple):
    """One as the file has it."""

    name: str
    kind: str
    """its class"""
    config: Mapping[str, Any]
    arrays: Sequence[Any] = ()
    """datasets of h5py's, in Keras' order"""
    nodes: Any = ()
    """where its inputs come from, in a model that is no Sequential one"""

    def refused(self, reason: str) -> RefusedError:
        """An error that names it."""
        return RefusedError(f"{self.name} ({self.kind}): {reason}")


class File(NamedTuple):
    """An open one."""

    root: Any
    """a group of h5py's"""
    config: Any
    """None: weights alone"""
    version: str
    """of the Keras that wrote it"""

    @property
    def major(self) -> int:
        """2 or 3, or more."""
        return major_of(self.version)


def major_of(version: str) -> int:
    """Of 3.15.1 it is 3."""
    return int(version.split(".")[0])


@contextmanager
def opened(path: Path) -> Iterator[File]:
    """Open a ``.keras`` or ``.h5`` file.

    Raises:
        RefusedError: it is none that can be read, or h5py is not installed.
        OSError, zipfile.BadZipFile, ValueError, KeyError: it is damaged.
    """
    try:
        import h5py
    except ImportError:
        raise RefusedError(
            "Keras files are read with h5py; pip install 'streamlstm[keras]'"
        ) from None
    if path.is_dir():
        raise RefusedError(f"a folder; load it in Keras and {MEND_WHOLE}")
    with ExitStack() as stack:
        if zipfile.is_zipfile(path):
            archive = stack.enter_context(zipfile.ZipFile(path))
            config, metadata = (_json(archive, f"{name}.json") for name in ("config", "metadata"))
            weights = stack.enter_context(archive.open("model.weights.h5"))
            root = stack.enter_context(h5py.File(weights))
            yield File(root, config, metadata["keras_version"])
            return
        path.stat()  # where there is nothing, an error that says so
        if not h5py.is_hdf5(path):
            raise RefusedError(f"neither a .keras archive nor an .h5 file; {MEND_WHOLE}")
        root = stack.enter_context(h5py.File(path, "r"))
        text = root.attrs.get("model_config")
        version = _text(root.attrs.get("keras_version", "3" if _top(root) else "1"))
        if version.startswith(("0.", "1")):
            raise RefusedError("Keras 1 wrote it; load it in Keras 2 and save it again")
        yield File(root, None if text is None else json.loads(_text(text)), version)


def _json(archive: zipfile.ZipFile, name: str) -> Any:
    if archive.getinfo(name).file_size > LARGEST_CONFIG:
        raise RefusedError(f"{name} is larger than {LARGEST_CONFIG:,} bytes")
    return json.loads(archive.read(name))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _held(group: Any) -> dict[str, Any]:
    """All datasets of a group by their paths, without any that a link leads to."""
    import h5py

    found = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name.replace("\\", "/")] = item  # Keras on Windows may have backslashes

    group.visititems(visit)
    return found


def _by_number(text: str) -> list[int | str]:
    """A key that sorts lstm_2 before lstm_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _top(root: Any) -> str | None:
    """The group of places in a file, if it has them."""
    return next((place for place in PLACES if place in root), None)


def _placed(group: Any) -> dict[str, list[Any]]:
    """The arrays by the place of their layer, such as lstm_1."""
    places: dict[str, list[Any]] = {}
    held = _held(group)
    for name in sorted(held, key=_by_number):
        top, place, *rest = name.split("/")
        if top in PLACES and "seed_generator" not in rest:
            places.setdefault(place, []).append(held[name])
    return places


def _listed(attrs: Any, name: str) -> list[str]:
    """A list of names, which Keras cuts in pieces where it is long."""
    if name in attrs:
        return [_text(each) for each in attrs[name]]
    pieces = sorted((key for key in attrs if re.fullmatch(rf"{name}\d+", key)), key=_by_number)
    return [_text(each) for key in pieces for each in attrs[key]]


def _named(group: Any) -> dict[str, list[Any]]:
    """Keras 2's arrays by the name of their layer, in the order of the layers."""
    held = _held(group)
    return {
        layer: [held[f"{layer}/{name}"] for name in _listed(group[layer].attrs, "weight_names")]
        for layer in _listed(group.attrs, "layer_names")
    }


def layers_of(file: File) -> list[Layer]:
    """The layers of a whole model from the input on, each fed by the one before it.

    Raises:
        RefusedError: the model is no chain of layers.
    """
    whole, config = file.config["class_name"], file.config["config"]
    if whole not in ("Sequential", "Functional", "Model"):
        raise RefusedError(
            f"a model of the class {whole}, whose code no file holds; build it as Sequential or"
            " Functional and set its weights"
        )
    # Keras before 2.2.3 wrote the layers of a Sequential model alone
    listed = config if isinstance(config, list) else config["layers"]
    legacy = "model_weights" in file.root
    arrays = _named(file.root["model_weights"]) if legacy else _placed(file.root)
    layers, numbers = [], dict[str, int]()
    for each in listed:
        name, kind = each["config"]["name"], each["class_name"]
        place = _snake_case(kind)
        number = numbers[place] = numbers.get(place, -1) + 1
        key = name if legacy else f"{place}_{number}" if number else place
        nodes = each.get("inbound_nodes", ())
        layers.append(Layer(name, class_of(each), each["config"], arrays.get(key, ()), nodes))
    return layers if whole == "Sequential" else _chain(config, layers)


def class_of(item: Mapping[str, Any]) -> str:
    """The class of a layer or cell, if Keras' own; else it is marked as the user's."""
    module = str(item.get("module") or "keras").split(".")[0]
    ours = module in ("keras", "tf_keras", "tensorflow")
    return item["class_name"] if ours else f"{item['class_name']} of your own"


def _snake_case(name: str) -> str:
    """As Keras makes places in a file of names of classes."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _chain(config: Mapping[str, Any], layers: Sequence[Layer]) -> list[Layer]:
    """The layers of a Functional model on the way from its input to its output."""
    by_name = {layer.name: layer for layer in layers}
    for what in ("input", "output"):
        names = _origins(config[f"{what}_layers"])
        if len(names) != 1:
            raise RefusedError(f"{len(names)} {what}s ({', '.join(names)}); a model has to have 1")
    name, chained = _origins(config["output_layers"])[0], list[Layer]()
    while len(chained) <= len(layers):
        layer = by_name[name]
        chained.append(layer)
        if not layer.nodes:
            return chained[::-1]
        if len(layer.nodes) > 1:
            raise layer.refused(f"used {len(layer.nodes)} times; {RUNS}, each used once")
        origins = _origins(layer.nodes)
        if len(origins) != 1:
            raise layer.refused(f"takes what {', '.join(origins)} give; {RUNS}, one after another")
        if '"training": true' in json.dumps(layer.nodes):
            raise layer.refused("called with training=True, as if it were still being fitted")
        name = origins[0]
    raise RefusedError(f"{name}: is fed by itself")


def _origins(node: Any) -> list[str]:
    """The layers that a node names: Keras 2's [name, 0, 0, kwargs], or Keras 3's tensors."""
    if isinstance(node, dict):
        history = node.get("config", {}).get("keras_history") if "class_name" in node else None
        if history is not None:
            return [history[0]]
        return list(chain.from_iterable(map(_origins, node.values())))
    if not isinstance(node, list):
        return []
    if len(node) >= 3 and isinstance(node[0], str) and all(type(n) is int for n in node[1:3]):
        return [node[0], *_origins(node[3:])]
    return list(chain.from_iterable(map(_origins, node)))


def bare_layers(file: File) -> list[Layer]:
    """The layers of a file of weights alone, as far as their shapes say what they are.

    Raises:
        RefusedError: they do not.
    """
    if _listed(file.root.attrs, "layer_names"):
        arrays = _named(file.root)
        if re.match(r"2\.[0-2]\.", file.version):
            raise RefusedError(
                f"weights alone, of Keras {file.version}, which had hard_sigmoid as the default of"
                f" recurrent_activation or sigmoid; {MEND_WHOLE}"
            )
    elif top := _top(file.root):
        arrays = {name: [] for name in sorted(file.root[top], key=_by_number)}
        arrays |= _placed(file.root)
    else:
        raise RefusedError(f"weights alone, of no Sequential or Functional model; {MEND_WHOLE}")
    layers = list[Layer]()
    silent = ("input", *map(_snake_case, DROPPED))
    for name, found in arrays.items():
        if found:
            layers.append(_by_shape(name, found))
        elif not name.startswith(silent):
            raise RefusedError(f"weights alone, which say nothing about {name}; {MEND_WHOLE}")
    heads = [layer for layer in layers if layer.kind == "Dense"]
    if len(heads) > 1:
        names = ", ".join(layer.name for layer in heads)
        raise RefusedError(f"weights alone, which say no activations of {names}; {MEND_WHOLE}")
    # Keras 3 has layers by class and number, not in the order of the data
    classes = {re.sub(r"_\d+$", "", layer.name) for layer in layers if layer.kind != "Dense"}
    if _top(file.root) and len(classes) > 1:
        raise RefusedError(
            f"weights alone, which say no order of {' and '.join(sorted(classes))}; {MEND_WHOLE}"
        )
    layers.sort(key=lambda layer: layer.kind == "Dense")
    return layers


def _by_shape(name: str, arrays: Sequence[Any]) -> Layer:
    """The layer that has arrays of these shapes, all else by default."""
    shapes = [each.shape for each in arrays]
    unknown = RefusedError(f"weights alone, whose shapes do not say what {name} is; {MEND_WHOLE}")
    if [len(shape) for shape in shapes] in ([2], [2, 1]):
        config = {"units": shapes[0][1], "activation": "linear", "use_bias": len(shapes) > 1}
        return Layer(name, "Dense", config, arrays)
    if len(shapes) not in (2, 3) or len(shapes[0]) != 2 or len(shapes[1]) != 2:
        raise unknown
    units, columns = shapes[1]
    kind = next((kind for kind, gates in GATES.items() if columns == gates * units), None)
    if kind is None or (kind == "GRU" and len(shapes) < 3):
        raise unknown
    config = {
        "units": units,
        "activation": "tanh",
        "recurrent_activation": "sigmoid",
        "use_bias": len(shapes) > 2,
        "reset_after": len(shapes[-1]) == 2,
        "return_sequences": True,
    }
    return Layer(name, kind, config, arrays)
