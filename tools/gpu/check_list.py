"""What `cuda_checks.py` checks: a function each, which returns what it found or raises what is wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np

from gpu.bench import Bench, CheckError, require, used_memory
from gpu.stand_in_engine import churned
from ppexport.backends.tensorrt.run_cuda import CudaMemoryError
from ppexport.backends.tensorrt.run_engine import TensorRTRunner
from ppexport.errors import ArtifactError, PpexportError

GPU_GROWTH, PROCESS_GROWTH = 8 << 20, 32 << 20
"""Bytes that the memory in use may differ by after the rounds; the smallest buffer of an image alone, lost every time,
is 200 times 0.75 MiB."""


def check_kernel(bench: Bench) -> str:
    """An engine runs, and what comes back is what NumPy computes."""
    with closing(bench.open()) as runner:
        for change in (0.0, 0.5):
            bench.run(runner, bench.noise, change)
    bench.cuda.check_held()
    return f"{bench.noise.lr.shape[2]}x{bench.noise.lr.shape[3]} pixels enlarged twice, all values equal"


def check_copies(bench: Bench) -> str:
    """Pinned memory of odd sizes goes to the GPU and comes back unchanged."""
    cuda, stream = bench.cuda, bench.cuda.stream()
    for size in bench.sizes:
        there, back, address = cuda.host_array((size,), "uint8"), cuda.host_array((size,), "uint8"), 0
        try:
            address = cuda.device_array(size)
            there[...] = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
            back[...] = ~there
            cuda.upload(address, there, stream)
            cuda.download(back, address, stream)
            cuda.wait(stream)
            require(np.array_equal(there, back), f"a copy of {size} bytes came back changed")
        finally:
            cuda.free_device(address)
            cuda.free_host(there)
            cuda.free_host(back)
    cuda.destroy_stream(stream)
    cuda.check_held()
    return f"{len(bench.sizes)} sizes from {min(bench.sizes)} to {max(bench.sizes)} bytes"


def check_order(bench: Bench) -> str:
    """A stream works in order, and a second one that waits for an event of the first sees what that did before."""
    cuda, count = bench.cuda, 4096
    first, second, event = cuda.stream(), cuda.stream(), cuda.event()
    data, found = cuda.host_array((count,), "uint32"), cuda.host_array((count,), "uint32")
    address = cuda.device_array(data.nbytes)
    try:
        for turn in range(3):
            data[...] = np.arange(count, dtype=np.uint32) + np.uint32(turn)
            found.fill(0)
            cuda.upload(address, data, first)
            bench.kernels.churn(address, count, bench.churns, first)
            cuda.record(event, first)
            cuda.wait_for(event, second)
            cuda.download(found, address, second)
            cuda.wait(second)
            wrong = int((found != churned(data, bench.churns)).sum())
            require(wrong == 0, f"the second stream read {wrong} of {count} numbers before the first was through")
    finally:
        cuda.wait(first)
        cuda.free_device(address)
        for array in (data, found):
            cuda.free_host(array)
        for stream in (first, second):
            cuda.destroy_stream(stream)
        cuda._release("cudaEventDestroy", event)
    cuda.check_held()
    return f"3 times, behind a kernel of {bench.churns} steps"


def check_graph(bench: Bench) -> str:
    """A recorded run gives what the same run gives directly, with new inputs every time."""
    with closing(bench.open()) as runner:
        bench.run(runner, bench.noise)
        graphs = [graph for _, graph in runner._loaded.values()]
        require(all(graphs), "the session could not record this engine, which does nothing but launch a kernel")
        seconds = {}
        for name, graph in (("recorded", graphs[0]), ("direct", None)):
            # As it is, and as for an engine that cannot be recorded.
            index, (context, _) = next(iter(runner._loaded.items()))
            runner._loaded[index] = context, graph
            for turn in range(5):
                bench.run(runner, bench.noise, turn / 8)
            begin = time.perf_counter()
            for _ in range(20):
                runner.run(bench.noise)
            seconds[name] = (time.perf_counter() - begin) / 20
            runner._loaded[index] = context, graphs[0]
            # TensorRT frees a context when nobody refers to it any more.
            del context
    bench.cuda.check_held()
    recorded, direct = (seconds[name] * 1e3 for name in ("recorded", "direct"))
    return f"5 inputs each way; a run takes {recorded:.3f} ms recorded, {direct:.3f} ms direct"


def check_unrecordable(bench: Bench) -> str:
    """An engine that cannot be recorded runs directly, and the failed recording leaves neither error nor memory."""
    with closing(bench.open(waits=True)) as runner:
        bench.run(runner, bench.noise)
        require(runner._loaded[1][1] is None, "waiting for a stream was recorded, which CUDA forbids")
        require(bench.cuda.last_error() == 0, "the failed recording left an error behind")
        for turn in range(3):
            bench.run(runner, bench.noise, turn / 8)
    bench.cuda.check_held()
    return "runs directly after its recording failed"


def check_profiles(bench: Bench) -> str:
    """A capacity set switches profiles from image to image, each with a context and a recording of its own."""
    with closing(bench.open()) as runner:
        for turn, image in enumerate((bench.flat, bench.noise, bench.flat, bench.noise)):
            bench.run(runner, image, turn / 8)
        require(len(runner._loaded) == 2, f"{len(runner._loaded)} profiles were loaded, not 2")
    bench.cuda.check_held()
    return f"{bench.flat.capacity} and {bench.noise.capacity} slots in turns"


def check_threads(bench: Bench) -> str:
    """A session runs in another thread than opened it, and two sessions run at the same time."""
    failed: list[BaseException] = []

    def work(runner: TensorRTRunner, start: float) -> None:
        try:
            for turn in range(10):
                bench.run(runner, (bench.flat, bench.noise)[turn % 2], start + turn / 16)
        except BaseException as error:
            failed.append(error)

    runners = [bench.open(), bench.open()]
    try:
        threads = [threading.Thread(target=work, args=(runner, n / 32)) for n, runner in enumerate(runners)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for runner in runners:
            runner.close()
    if failed:
        raise failed[0]
    bench.cuda.check_held()
    return "10 images in each of two threads, recording beside each other"


def check_recording_beside(bench: Bench) -> str:
    """While this thread records, another one may allocate."""
    cuda, stream = bench.cuda, bench.cuda.stream()
    source, address = cuda.host_array((1024,), "uint8"), cuda.device_array(1024)
    found: list[Any] = []

    def allocate() -> None:
        try:
            found.extend((cuda.device_array(1 << 20), cuda.host_array((1 << 20,), "uint8")))
        except BaseException as error:
            found.append(error)

    cuda.begin_capture(stream)
    cuda.upload(address, source, stream)
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    graph = cuda.end_capture(stream)
    for item in found:
        if isinstance(item, BaseException):
            raise item
    cuda.launch(graph, stream)
    cuda.wait(stream)
    cuda.free_device(found[0])
    cuda.free_host(found[1])
    cuda.destroy_graph(graph)
    cuda.free_device(address)
    cuda.free_host(source)
    cuda.destroy_stream(stream)
    cuda.check_held()
    return "1 MiB on the GPU and 1 MiB pinned"


def expect(kind: type[PpexportError], work: Callable[[], object], what: str) -> str:
    """The text of the error of *kind* that *work* must raise; *what* says what it does."""
    try:
        work()
    except kind as error:
        return str(error)
    raise CheckError(f"{what} gave no error")


def check_full_memory(bench: Bench) -> str:
    """More memory than the GPU has is a CudaMemoryError, after which the session runs and closes as ever."""
    cuda = bench.cuda
    # So much that nobody begins to look for it, as a board might whose GPU shares the main memory.
    too_much = 64 * cuda.memory()[1]
    with closing(bench.open(workspaces={1: too_much})) as runner:
        bench.run(runner, bench.flat)
        text = expect(CudaMemoryError, lambda: cuda.device_array(too_much), f"an allocation of {too_much} bytes")
        require(cuda.last_error() == 0, "the failed allocation left an error behind")
        bench.run(runner, bench.flat, 0.25)
        expect(CudaMemoryError, lambda: runner.run(bench.noise), "a profile for which there is no memory")
        bench.run(runner, bench.flat, 0.5)
    cuda.check_held()
    return text


def check_failed_call(bench: Bench) -> str:
    """A call that CUDA refuses is an error in CUDA's words, after which the session runs and closes as ever."""
    cuda = bench.cuda
    with closing(bench.open()) as runner:
        bench.run(runner, bench.noise)
        port = runner.ports["lr"]
        wrong: Callable[[], object] = lambda: cuda.copy_wrongly(port.device, port.host, runner.stream)  # noqa: E731
        text = expect(ArtifactError, wrong, "a copy in no direction")
        require(cuda.last_error() == 0, "the refused call left an error behind")
        expect(ArtifactError, lambda: cuda.end_capture(runner.stream), "the end of a recording that never began")
        bench.run(runner, bench.noise, 0.25)
    cuda.check_held()
    return text


def check_rounds(bench: Bench) -> str:
    """Opening, running both profiles and closing again and again takes no more and more memory."""
    rounds, warm_up = bench.rounds
    before = 0, 0
    for turn in range(rounds + warm_up):
        if turn == warm_up:
            before = bench.cuda.memory()[0], used_memory()
        with closing(bench.open(waits=turn % 4 == 3)) as runner:
            for image in (bench.flat, bench.noise):
                bench.run(runner, image, turn % 8 / 8)
        bench.cuda.check_held()
    gpu, process = before[0] - bench.cuda.memory()[0], used_memory() - before[1]
    grown = f"{gpu / 2**20:+.1f} MiB on the GPU and {process / 2**20:+.1f} MiB of main memory in {rounds} rounds"
    require(gpu <= GPU_GROWTH and process <= PROCESS_GROWTH, f"memory in use grew: {grown}")
    return grown


CHECKS: dict[str, Callable[[Bench], str]] = {
    "kernel": check_kernel,
    "copies": check_copies,
    "order of streams": check_order,
    "recorded run": check_graph,
    "not recordable": check_unrecordable,
    "profiles": check_profiles,
    "threads": check_threads,
    "recording beside": check_recording_beside,
    "full memory": check_full_memory,
    "refused call": check_failed_call,
    "rounds": check_rounds,
}
