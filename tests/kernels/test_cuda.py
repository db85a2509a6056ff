"""The CUDA step without a GPU: in Numba's simulator, as PTX, and as an error that says what to do.

Each in a process of its own, since the simulator is chosen before Numba is imported.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from streamlstm.kernels import cell

ROOT = Path(__file__).parents[2]
CONFORMANCE = "tests/kernels/conformance_cuda.py"
INSTALLED = importlib.util.find_spec("numba_cuda") is not None
needs_numba_cuda = pytest.mark.skipif(not INSTALLED, reason="numba-cuda is not installed")


def python(*arguments, **environment):
    """What a new interpreter prints; its exit code and errors where it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@needs_numba_cuda
def test_the_simulated_step_conforms():
    out = python("-m", "pytest", CONFORMANCE, "-x", NUMBA_ENABLE_CUDASIM="1")
    assert " passed" in out
    assert "skipped" not in out


@needs_numba_cuda
def test_the_step_conforms_on_the_gpu_of_this_machine():
    probe = "from streamlstm.kernels import cuda; print(cuda.unusable())"
    if reason := python("-c", probe).strip():
        pytest.skip(f"no usable GPU: {reason}")
    assert " passed" in python("-m", "pytest", CONFORMANCE, "-x")


COMPILE = """
import sys
from types import SimpleNamespace
import numba.cuda.dispatcher
from numba import cuda
from streamlstm.kernels import block
target, *constants = eval(sys.argv[1])
# device functions ask the device that is not there what it is
numba.cuda.dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=target)
python = block.define(*constants)
print(cuda.compile_ptx(python, block.SIGNATURE.args, cc=target, launch_bounds=block.THREADS)[0])
print(cuda.compile_ptx(block.define_move(), block.MOVE.args, cc=target)[0])
"""


LSTM, GRU, RNN, RESET, _ = range(5)  # the first pass over a layer, as `warp` counts them


@needs_numba_cuda
@pytest.mark.parametrize(
    ("target", "kind", "windowed", "rows", "activation", "divisions"),
    [
        ((9, 0), LSTM, False, 8, "tanh", 3 * 16),
        ((8, 0), LSTM, True, 2, "relu", 3 * 4),
        ((8, 0), GRU, True, 8, "tanh", 3 * 16),
        ((9, 0), RESET, False, 8, "tanh", 2 * 32 + 64),
        ((9, 0), RNN, False, 2, "tanh", 16),
    ],
)
def test_ptx_keeps_sums_in_registers_and_divides_exactly(
    target, kind, windowed, rows, activation, divisions
):
    codes = cell.activation_code(activation), cell.SIGMOID
    ptx = python("-c", COMPILE, repr((target, kind, windowed, rows, *codes)))
    assert f".target sm_{target[0]}{target[1]}" in ptx
    assert ".maxntid 512" in ptx
    assert ptx.count(".visible .entry") == 2
    assert ptx.count("fma.rn.f32") >= rows * 6 * 5
    assert ".local" not in ptx  # no array of a lane in memory
    assert ptx.count("ld.shared.v4.f32") >= 10
    exact = len(re.findall(r"(?:div|rcp)\.rn\.f32", ptx))
    assert exact - divisions in (2, 4)  # tanh and sigmoid of the head
    assert not {"call", "div.approx.f32", "rcp.approx.ftz.f32", "ex2.approx"} & set(ptx.split())
    assert ".ftz" not in ptx
    # ptxas may fuse what has no rounding of its own: no such product is added to anything
    products = set(re.findall(r"\bmul\.f32\s+(%f\d+)", ptx))
    sums = re.findall(r"\b(?:add|sub)\.f32\s+%f\d+, (%f\d+), (\S+);", ptx)
    assert sums
    assert not products & {operand for operands in sums for operand in operands}


OPEN = """
import sys
from streamlstm.engine import Engine
from streamlstm.kernels.cell import BackendError
from tests.models import random_model
try:
    spec = dict(option.split("=") for option in sys.argv[2:])
    engine = Engine(random_model(**spec), backend=sys.argv[1], max_series=1)
    print(engine.backend, "-", engine.backend_reason)
except BackendError as error:
    print(error)
"""


@needs_numba_cuda
def test_cuda_without_a_gpu_is_one_line_that_says_the_mend():
    out = python("-c", OPEN, "cuda", CUDA_VISIBLE_DEVICES="")
    assert out.startswith("backend 'cuda': no usable GPU (")
    assert out.endswith("); install its driver or set backend = 'cpu'\n")
    assert out.count("\n") == 1


@needs_numba_cuda
def test_auto_without_a_gpu_takes_the_cpu_and_says_why():
    out = python("-c", OPEN, "auto", CUDA_VISIBLE_DEVICES="")
    assert out.startswith("cpu - no usable GPU (")


@needs_numba_cuda
def test_auto_takes_a_gpu_that_is_there():
    assert python("-c", OPEN, "auto", NUMBA_ENABLE_CUDASIM="1") == "cuda - a GPU is there\n"


@needs_numba_cuda
def test_auto_takes_the_cpu_for_a_model_that_no_gpu_runs():
    out = python("-c", OPEN, "auto", "activation=elu", NUMBA_ENABLE_CUDASIM="1")
    assert out == "cpu - a GPU does not run this model: it has no activation elu\n"


def test_nothing_of_cuda_is_imported_unless_asked_for():
    code = (
        "import sys, streamlstm.service, streamlstm.cli;"
        " print([name for name in sys.modules if name.split('.')[:2] == ['numba', 'cuda']"
        " or name.split('.')[0] in ('numba_cuda', 'cuda') or name.endswith('kernels.cuda')])"
    )
    assert python("-c", code) == "[]\n"


def test_cuda_without_numba_cuda_says_what_to_install():
    hide = "import importlib.util as u; u.find_spec = lambda name: None\n"
    out = python("-c", hide + OPEN, "cuda")
    assert out == (
        "backend 'cuda': numba-cuda is not installed; pip install 'streamlstm[cuda]'"
        " or set backend = 'cpu'\n"
    )
