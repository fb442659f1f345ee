"""Stand-ins with the same functions as TensorRT's runtime and `backends/tensorrt/run_cuda.py`, for machines without a
GPU.

The engine enlarges `lr` to the nearest pixel and counts how often it really ran; a graph that was recorded runs again
only when it is launched, as on a GPU.
"""

from __future__ import annotations

import types
from collections.abc import Callable

import numpy as np

from ppexport.backends.tensorrt.run_cuda import MEMORY, CudaMemoryError
from ppexport.errors import ArtifactError


class FakeCuda:
    """Device memory is NumPy arrays, a stream is a list of things done."""

    def __init__(self, room=1000):
        self.room = room
        self.held = set()
        self.memory = {}
        self.graphs = []
        self.recording = None
        self.done = []

    def _put(self, what: str, action: Callable[[], None]) -> None:
        if self.recording is None:
            self.done.append(what)
            action()
        else:
            self.recording.append((what, action))

    def device_array(self, size):
        if not self.room:
            raise CudaMemoryError(MEMORY)
        self.room -= 1
        address = 4096 * (len(self.memory) + 1)
        self.memory[address] = np.zeros(size, np.uint8)
        self.held.add(("device", address))
        return address

    def host_array(self, shape, dtype):
        array = np.full(shape, 7, dtype)
        self.held.add(("host", array.ctypes.data))
        return array

    def stream(self):
        self.held.add(("stream", 1))
        return 1

    def free_device(self, address):
        # cudaFree takes a null pointer, and nothing twice.
        if address:
            self.held.remove(("device", address))

    def free_host(self, array):
        self.held.remove(("host", array.ctypes.data))

    def destroy_stream(self, stream):
        self.held.remove(("stream", stream))

    def destroy_graph(self, graph):
        self.held.remove(("graph", graph))

    def upload(self, target, source, stream):
        self._put("upload", lambda: self.memory[target].__setitem__(slice(None), source.reshape(-1).view(np.uint8)))

    def download(self, target, source, stream):
        self._put("download", lambda: target.reshape(-1).view(np.uint8).__setitem__(slice(None), self.memory[source]))

    def wait(self, stream):
        assert self.recording is None, "waiting while recording is an error in CUDA"

    def begin_capture(self, stream):
        self.recording = []

    def end_capture(self, stream):
        recorded, self.recording = self.recording, None
        self.graphs.append(recorded)
        self.held.add(("graph", len(self.graphs)))
        return len(self.graphs)

    def launch(self, graph, stream):
        for what, action in self.graphs[graph - 1]:
            self.done.append(what)
            action()


class FakeContext:
    def __init__(self, engine):
        self.engine, self.profile, self.addresses, self.shapes = engine, None, {}, {}

    def set_optimization_profile_async(self, index, stream):
        self.profile = index
        return 0 <= index < self.engine.num_optimization_profiles

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        engine = self.engine
        if engine.cuda.recording is not None and not engine.records:
            raise ArtifactError("this engine cannot be recorded")
        memory, (h, w), s = engine.cuda.memory, engine.size, engine.scale

        def run() -> None:
            engine.runs.append((self.profile, self.shapes.get("slots")))
            lr = memory[self.addresses["lr"]].view(np.float32).reshape(1, 3, h, w)
            sr = lr.repeat(s, axis=2).repeat(s, axis=3)
            memory[self.addresses["sr"]][:] = sr.reshape(-1).view(np.uint8)
            memory[self.addresses["impure_tokens"]].view(np.int32)[0] = 5

        engine.cuda._put("run", run)
        return True


class FakeEngine:
    def __init__(self, cuda, names, profiles, size, scale, records=True):
        self.cuda, self.names, self.size, self.scale = cuda, names, size, scale
        self.num_io_tensors, self.num_optimization_profiles = len(names), profiles
        self.records, self.runs = records, []

    def get_tensor_name(self, index):
        return self.names[index]

    def create_execution_context(self):
        return FakeContext(self)


def fake_module(engine, name="tensorrt", version="10.3.0", said=None):
    """A module with the little of TensorRT that a session uses; *engine* None is one that it cannot load.

    It logs the error *said* when it loads one.
    """

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self):
            pass

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            module.loaded.append(plan)
            if said is not None:
                self.logger.log(ILogger.ERROR, said)
            return engine

    module = types.ModuleType(name)
    module.ILogger, module.Runtime, module.__version__, module.loaded = ILogger, Runtime, version, []
    module.Builder = object
    return module
