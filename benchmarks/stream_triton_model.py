"""What Triton runs for :mod:`benchmarks.stream_triton`: one step of some series, states kept here.

Triton's sequence batcher sees to it that a series comes at most once in a batch, in order, and
always to the same instance.
"""

import os
import sys

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # which the stub's interpreter ignores

import numpy as np  # noqa: E402
import onnxruntime  # type: ignore[import-not-found]  # noqa: E402
import triton_python_backend_utils as triton  # type: ignore[import-not-found]  # noqa: E402


class TritonPythonModel:  # noqa: D101
    def initialize(self, args):  # type: ignore[no-untyped-def]  # noqa: D102
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path = os.path.join(args["model_repository"], args["model_version"], "step.onnx")
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.hidden = self.session.get_inputs()[1].shape[2]
        self.slots = {}
        self.h = np.zeros((0, self.hidden), np.float32)
        self.c = np.zeros((0, self.hidden), np.float32)

    def execute(self, requests):  # type: ignore[no-untyped-def]  # noqa: D102
        series, x = (
            np.concatenate(
                [triton.get_input_tensor_by_name(each, name).as_numpy() for each in requests]
            )[:, 0]
            for name in ("CORRID", "x")
        )
        slots = np.array([self.slots.setdefault(each, len(self.slots)) for each in series.tolist()])
        if len(self.slots) > len(self.h):
            more = np.zeros((len(self.slots) + len(self.h), self.hidden), np.float32)
            self.h, self.c = np.concatenate([self.h, more]), np.concatenate([self.c, more])
        feed = {"x": x[None, :, None], "h": self.h[None, slots], "c": self.c[None, slots]}
        y, h, c = self.session.run(None, feed)
        self.h[slots], self.c[slots] = h[0], c[0]
        return [
            triton.InferenceResponse([triton.Tensor("y", y[place : place + 1])])
            for place in range(len(requests))
        ]
