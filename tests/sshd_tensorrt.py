"""Plays the Python module `tensorrt` on the device of `sshd.py`, as far as `run_builder` uses it.

Copied there as `tensorrt.py`. Files in the folder `bin` beside its own steer it: `hold`, `fail` and `refuse`.
"""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

__version__ = "10.3.0"
STEER = Path(__file__).resolve().parent.parent / "bin"
NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
ProfilingVerbosity = SimpleNamespace(DETAILED=2)
BuilderFlag = SimpleNamespace(TF32=7)
MemoryPoolType = SimpleNamespace(WORKSPACE=0)


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self):
        pass


class IProgressMonitor:
    def __init__(self):
        pass


class OnnxParser:
    def __init__(self, network, logger):
        self.num_errors = int((STEER / "refuse").exists())

    def parse(self, model):
        return not self.num_errors

    def get_error(self, number):
        return SimpleNamespace(
            node_name=lambda: "/layers.0/attn/MatMul",
            node_operator=lambda: "MatMul",
            desc=lambda: "\x1b]0;owned\x07no \x1b[31mimporter",
        )


class Config:
    def __init__(self):
        self.profiles = 0

    def set_flag(self, flag):
        pass

    def clear_flag(self, flag):
        pass

    def set_memory_pool_limit(self, pool, size):
        pass

    def create_timing_cache(self, data):
        return SimpleNamespace(serialize=lambda: b"cache")

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache

    def add_optimization_profile(self, profile):
        self.profiles += 1
        return self.profiles - 1


class Builder:
    def __init__(self, logger):
        self.logger = logger

    def create_network(self, flags):
        return SimpleNamespace()

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return SimpleNamespace(set_shape=lambda *arguments: None)

    def build_serialized_network(self, network, config):
        with (STEER / "runs").open("a") as runs:
            runs.write("run\n")
        config.progress_monitor.phase_start("Building", None, 2)
        while (STEER / "hold").exists():
            time.sleep(0.05)
        config.progress_monitor.phase_finish("Building")
        if (STEER / "fail").exists():
            self.logger.log(ILogger.ERROR, "\x1b[31mno kernel for /layers.0/attn/MatMul")
            return None
        return b"engine with %d profiles" % config.profiles
