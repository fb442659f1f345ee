"""CUDA's runtime and driver, played on the CPU behind true C functions, so that a wrong type of an argument shows.

Streams are queues that run when somebody waits for them, as late as CUDA may. Kernels are PTX, which is interpreted.
Host memory of copies must be pinned. Test by overriding what CUDA is to get wrong.
"""

from __future__ import annotations

import ctypes
import re
import threading
import traceback
from collections import deque
from itertools import count

import numpy as np

P, SIZE, INT, UINT, LONG = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint, ctypes.c_ulonglong
SIGNATURES = {
    "cudaGetDeviceCount": (P,),
    "cudaGetErrorString": (INT,),
    "cudaGetLastError": (),
    "cudaRuntimeGetVersion": (P,),
    "cudaMemGetInfo": (P, P),
    "cudaMalloc": (P, SIZE),
    "cudaFree": (P,),
    "cudaHostAlloc": (P, SIZE, UINT),
    "cudaFreeHost": (P,),
    "cudaStreamCreate": (P,),
    "cudaStreamDestroy": (P,),
    "cudaStreamSynchronize": (P,),
    "cudaStreamBeginCapture": (P, INT),
    "cudaStreamEndCapture": (P, P),
    "cudaStreamWaitEvent": (P, P, UINT),
    "cudaGraphInstantiateWithFlags": (P, P, LONG),
    "cudaGraphDestroy": (P,),
    "cudaGraphExecDestroy": (P,),
    "cudaGraphLaunch": (P, P),
    "cudaEventCreate": (P,),
    "cudaEventRecord": (P, P),
    "cudaEventDestroy": (P,),
    "cudaMemcpyAsync": (P, P, SIZE, INT, P),
    "cuModuleLoadDataEx": (P, ctypes.c_char_p, UINT, P, P),
    "cuModuleGetFunction": (P, P, ctypes.c_char_p),
    "cuLaunchKernel": (P, UINT, UINT, UINT, UINT, UINT, UINT, UINT, P, P, P),
}
"""As in `cuda_runtime_api.h` and `cuda.h`."""
INVALID, NO_MEMORY, BAD_DIRECTION, NOT_RECORDED, UNRECORDABLE, BROKEN, CRASHED = 1, 2, 21, 401, 900, 901, 999


class Library:
    """What `ctypes.CDLL` gives: functions without prototypes, which take what they are given."""

    def __init__(self, played: PlayedCuda) -> None:
        self._played, self._kept = played, []

    def __getattr__(self, name):
        if name not in SIGNATURES:
            raise AttributeError(name)
        text = name == "cudaGetErrorString"
        callback = ctypes.CFUNCTYPE(P if text else INT, *SIGNATURES[name])(
            lambda *given: self._played.call(name, given)
        )
        self._kept.append(callback)
        function = ctypes.CDLL(None)._FuncPtr(ctypes.cast(callback, P).value)
        setattr(self, name, function)
        return function


def _put(pointer, value, kind=P):
    kind.from_address(pointer).value = value


def _bytes(address, size):
    return np.ctypeslib.as_array((ctypes.c_ubyte * size).from_address(address))


class PlayedCuda:
    """One GPU with *total* bytes."""

    def __init__(self, total=1 << 30):
        self.total, self.numbers, self.lock = total, count(1), threading.RLock()
        self.device, self.pinned = {}, {}
        self.streams, self.events, self.graphs, self.executables = {}, {}, {}, {}
        self.recording, self.broken = {}, set()
        self.last = threading.local()
        self.words = ctypes.create_string_buffer(b"words of CUDA")
        self.module = self.crash = None
        self.library = Library(self)

    def call(self, name, given):
        with self.lock:
            try:
                code = getattr(self, name)(*given) or 0
            except Exception:
                # It would be lost in C.
                self.crash, code = traceback.format_exc(), CRASHED
            if code and name not in ("cudaGetLastError", "cudaGetErrorString"):
                self.last.code = code
            return code

    def cudaGetErrorString(self, code):
        return ctypes.addressof(self.words)

    def cudaGetLastError(self):
        code, self.last.code = getattr(self.last, "code", 0), 0
        return code

    def cudaGetDeviceCount(self, found):
        _put(found, 1, INT)

    def cudaRuntimeGetVersion(self, found):
        _put(found, 12060, INT)

    def cudaMemGetInfo(self, free, total):
        _put(free, self.total - sum(map(len, self.device.values())), SIZE)
        _put(total, self.total, SIZE)

    def _allocate(self, where, found, size):
        array = np.full(size, 0xA5, np.uint8)
        where[array.ctypes.data] = array
        _put(found, array.ctypes.data)

    def cudaMalloc(self, found, size):
        if size + sum(map(len, self.device.values())) > self.total:
            return NO_MEMORY
        return self._allocate(self.device, found, size)

    def cudaFree(self, address):
        if address is not None and self.device.pop(address, None) is None:
            return INVALID

    def cudaHostAlloc(self, found, size, flags):
        return self._allocate(self.pinned, found, size)

    def cudaFreeHost(self, address):
        return INVALID if self.pinned.pop(address, None) is None else 0

    def _new(self, where, found, value):
        handle = next(self.numbers) << 33
        where[handle] = value
        _put(found, handle)

    def cudaStreamCreate(self, found):
        return self._new(self.streams, found, deque())

    def cudaStreamDestroy(self, stream):
        return INVALID if self.streams.pop(stream, None) is None else 0

    def cudaEventCreate(self, found):
        return self._new(self.events, found, None)

    def cudaEventDestroy(self, event):
        del self.events[event]

    def enqueue(self, stream, work):
        (self.recording[stream] if stream in self.recording else self.streams[stream]).append(work)

    def progress(self, stream, until=lambda: False):
        queue = self.streams[stream]
        while queue and not until():
            queue.popleft()()

    def cudaStreamSynchronize(self, stream):
        if stream in self.recording:
            self.broken.add(stream)
            return UNRECORDABLE
        if stream not in self.streams:
            return INVALID
        self.progress(stream)

    def cudaEventRecord(self, event, stream):
        reached = []
        self.events[event] = stream, reached
        self.enqueue(stream, lambda: reached.append(True))

    def cudaStreamWaitEvent(self, stream, event, flags):
        other, reached = self.events[event]
        self.enqueue(stream, lambda: self.progress(other, lambda: reached))

    def cudaStreamBeginCapture(self, stream, mode):
        if stream not in self.streams or stream in self.recording or mode != 2:
            return INVALID
        self.recording[stream] = []

    def cudaStreamEndCapture(self, stream, found):
        if stream not in self.recording:
            return NOT_RECORDED
        recorded = self.recording.pop(stream)
        if stream in self.broken:
            self.broken.discard(stream)
            _put(found, 0)
            return BROKEN
        return self._new(self.graphs, found, recorded)

    def cudaGraphInstantiateWithFlags(self, found, graph, flags):
        return self._new(self.executables, found, self.graphs[graph])

    def cudaGraphDestroy(self, graph):
        return INVALID if self.graphs.pop(graph, None) is None else 0

    def cudaGraphExecDestroy(self, graph):
        return INVALID if self.executables.pop(graph, None) is None else 0

    def cudaGraphLaunch(self, graph, stream):
        for work in self.executables[graph]:
            self.enqueue(stream, work)

    def copy(self, target, source, size):
        ctypes.memmove(target, source, size)

    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        if kind not in (1, 2):
            return BAD_DIRECTION
        places = (self.device, self.pinned) if kind == 1 else (self.pinned, self.device)
        for address, where in zip((target, source), places, strict=True):
            if len(where.get(address, ())) < size:
                return INVALID
        self.enqueue(stream, lambda: self.copy(target, source, size))

    def cuModuleLoadDataEx(self, found, text, options, names, values):
        self.module = {name: (args, body) for name, args, body in re.findall(
            r"\.entry (\w+)\((.*?)\)\s*\{(.*?)\}", text.decode(), re.DOTALL
        )}  # fmt: skip
        _put(found, 1)

    def cuModuleGetFunction(self, found, module, name):
        return self._new(self.events, found, self.module[name.decode()])

    def cuLaunchKernel(self, kernel, gx, gy, gz, bx, by, bz, shared, stream, given, extra):
        if (gy, gz, by, bz, shared, extra) != (1, 1, 1, 1, 0, None) or bx > 1024:
            return INVALID
        arguments, body = self.events[kernel]
        values = {}
        for i, (bits, name) in enumerate(re.findall(r"\.param \.u(\d+) (\w+)", arguments)):
            kind = {"32": UINT, "64": LONG}[bits]
            values[name] = kind.from_address(P.from_address(given + 8 * i).value).value
        self.enqueue(stream, lambda: self.interpret(body, values, gx, bx))

    def word(self, address):
        """The memory on the device that holds *address*, and the index of its word there."""
        base = max((start for start in self.device if start <= address), default=None)
        assert base is not None
        assert address % 4 == 0
        assert address + 4 <= base + len(self.device[base]), "a kernel leaves its buffer"
        return base

    def interpret(self, body, values, blocks, threads):
        """Run the PTX *body* with a NumPy array for every register; a branch that only some threads take ends them."""
        lines = [line.strip().rstrip(";") for line in body.strip().splitlines()]
        lines = [line for line in lines if line and not line.startswith(".reg")]
        labels = {line[:-1]: i for i, line in enumerate(lines) if line.endswith(":")}
        index = np.arange(blocks * threads)
        registers = {"%ctaid.x": index // threads, "%tid.x": index % threads, "%ntid.x": index * 0 + threads}
        active, at = np.ones(len(index), bool), 0

        def read(name):
            return registers[name] if name.startswith("%") else np.full(len(index), int(name))

        while lines[at] != "ret":
            line, at = lines[at], at + 1
            if line.endswith(":"):
                continue
            if line.startswith("@"):
                predicate, _, label = line[1:].split()
                taken = registers[predicate] & active
                if taken[active].all():
                    at = labels[label]
                elif taken.any():
                    assert label == "DONE", "only the end can be reached by some threads alone"
                    active &= ~taken
                continue
            operation, rest = line.split(None, 1)
            target, *operands = [part.strip() for part in rest.split(",")]
            kind = operation.split(".")
            mask = (1 << (64 if kind[-1] == "u64" or kind[1] in ("wide", "to") else 32)) - 1
            if kind[0] == "ld" and kind[1] == "param":
                registers[target] = np.full(len(index), values[operands[0][1:-1]])
            elif kind[0] in ("ld", "st"):
                place, other = (operands[0], target) if kind[0] == "ld" else (target, operands[0])
                addresses = registers[place[1:-1]]
                base = self.word(int(addresses[active].min()))
                assert base == self.word(int(addresses[active].max()))
                memory, where = self.device[base].view(np.uint32), (addresses[active] - base) // 4
                if kind[0] == "ld":
                    registers[other] = np.zeros(len(index), np.int64)
                    registers[other][active] = memory[where]
                else:
                    memory[where] = registers[other][active]
            elif kind[0] == "setp":
                a, b = map(read, operands)
                registers[target] = a >= b if kind[1] == "ge" else a != b
            else:
                given = [read(name).astype(np.uint64) for name in operands]
                a, b, c = [*given, *[np.uint64(0)] * (3 - len(given))]
                compute = {
                    "mov": lambda a, b, c: a, "cvta": lambda a, b, c: a, "add": lambda a, b, c: a + b,
                    "sub": lambda a, b, c: a - b, "mul": lambda a, b, c: a * b, "mad": lambda a, b, c: a * b + c,
                    "div": lambda a, b, c: a // b, "rem": lambda a, b, c: a % b,
                }[kind[0]]  # fmt: skip
                registers[target] = (compute(a, b, c) & np.uint64(mask)).astype(np.int64)
