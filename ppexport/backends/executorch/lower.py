"""Twin -> model.pte: exported by `torch.export`, lowered by ExecuTorch, described.

A program has one method, `forward`, for all capacities of a set: the length of its input `slots` (1, C) is symbolic, a
multiple of the group. What it says of itself are methods without inputs, such as `ppexport_capacities`.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.fx.traceback import NodeSource

from ppexport.backends.backend import BuildJob, Step, model_facts
from ppexport.backends.executorch.lowering_cache import kept_or_made
from ppexport.backends.executorch.operators import XnnpackForm
from ppexport.backends.executorch.own_modules import with_own_modules
from ppexport.backends.open_front import Front
from ppexport.backends.self_check import example_inputs
from ppexport.device.artifact import Manifest
from ppexport.errors import ExportError, InputError, PpexportError, counted, first_line
from ppexport.files import sha256_text
from ppexport.networks.card import Card
from ppexport.twin.twin import StaticTwin

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FEW_GROUPS = 2
"""Groups of slots that a graph is traced with; torch.export takes lengths of 0 and 1 for constants."""


class InXnnpackForm(nn.Module):
    """A front whose operators are computed as XNNPACK takes them."""

    def __init__(self, front: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        """*inputs* by name are run once, which shows what lengths are summed over."""
        super().__init__()
        self.front, self.rows = front, nn.Module()
        form = XnnpackForm(self.rows)
        with torch.no_grad(), form:
            front(**inputs)
        for length in sorted(form.needed):
            self.rows.register_buffer(f"ones_{length}", torch.ones(1, length))

    def forward(self, lr: Tensor, mask: Tensor | None = None, slots: Tensor | None = None) -> tuple[Tensor, ...]:
        """What the front gives."""
        with XnnpackForm(self.rows):
            out: tuple[Tensor, ...] = self.front(lr, mask, slots)
        return out


def export_twin(
    twin: StaticTwin, given: BuildJob | Manifest, front: Callable[[StaticTwin], nn.Module], partitioner: str
) -> ExportedProgram:
    """The graph of *front* of *twin*, with the capacities and the mask of *given*, for a *partitioner*.

    Raises InputError where it computes something else with more slots, as windows of two grids do.
    """
    is_set = len(given.capacities) > 1
    inputs = example_inputs(twin, mask=given.mask == "input", slots=FEW_GROUPS * twin.group if is_set else 0)
    whole: nn.Module = front(twin)
    if partitioner == "xnnpack":
        whole = InXnnpackForm(front(with_own_modules(twin)), inputs)
    shapes: dict[str, Any] = dict.fromkeys(inputs)
    if is_set:
        shapes["slots"] = {1: twin.group * torch.export.Dim("groups", min=1, max=twin.capacity // twin.group)}
    further = {name: value for name, value in inputs.items() if name != "lr"}
    with torch.no_grad():
        program = torch.export.export(whole.eval(), (inputs["lr"],), further, dynamic_shapes=shapes)
    # What torch.export has found: the length itself, and the number of groups in it.
    most = min((int(found.upper) for found in program.range_constraints.values()), default=twin.capacity) * twin.group
    if is_set and most < twin.capacity:
        raise InputError(
            f"a capacity set of {twin.network.arch} at this size has at most {most} slots in ExecuTorch: give "
            "capacities up to that, or only one"
        )
    return program


def describe_graph(program: ExportedProgram) -> str:
    """A hash of all that *program* computes: its operators, shapes and weights."""
    # Comments tell where in the sources an operator comes from.
    lines = [line for line in str(program).splitlines() if not line.lstrip().startswith("#")]
    tensors = {**program.state_dict, **program.constants}
    for name in sorted(tensors):
        value = tensors[name]
        if isinstance(value, Tensor):
            content = value.detach().contiguous().view(-1)
            lines.append(f"{name} {value.dtype} {tuple(value.shape)} {sha256_text(content.numpy().tobytes().hex())}")
    return sha256_text("\n".join(lines))


def sources_hash() -> str:
    """A hash of the sources of this folder, which decide what a graph is lowered to."""
    return sha256_text("".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))))


@contextmanager
def quiet_lowering() -> Iterator[None]:
    """Keep ExecuTorch and what it imports from logging what is no news, and from copying what nobody reads.

    Failures are raised. For every operator torch.fx keeps what it was made from in every pass, and copies that history
    in every further one: without copies a lowering takes a sixth less, and its program has the same bytes.
    """
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    shared = mock.patch.object(NodeSource, "__deepcopy__", lambda source, memo: source, create=True)
    try:
        with shared, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def lower(program: ExportedProgram, facts: Mapping[str, str], partitioner: str, step: Step) -> bytes:
    """The bytes of a .pte file of *program*, with *facts* as methods, whose operators *partitioner* chose.

    Raises whatever ExecuTorch raises.
    """
    from executorch.exir import to_edge_transform_and_lower

    methods = {name.replace(".", "_"): value for name, value in facts.items()}
    if partitioner == "vulkan":
        from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

        step("lowering for Vulkan")
        manager = to_edge_transform_and_lower(program, partitioner=[VulkanPartitioner()], constant_methods=methods)
    else:
        from ppexport.backends.executorch.partition import LevelPartitioner

        step("converting to ExecuTorch's operators")
        levels = LevelPartitioner(TimeLeft(step))
        with levels.reporting():
            manager = to_edge_transform_and_lower(program, partitioner=[levels], constant_methods=methods)
    step("planning the memory")
    return bytes(manager.to_executorch().buffer)


class TimeLeft:
    """Tells how many subgraphs are lowered, and how long the others will take."""

    def __init__(self, step: Step) -> None:
        self.step, self.first = step, 0.0

    def __call__(self, done: int, total: int) -> None:
        """*done* of *total* subgraphs; the first one also imports and prepares."""
        now = time.monotonic()
        if not done:
            # For each of them ExecuTorch sorts the whole graph.
            self.step(f"cutting the graph into {counted(total, 'subgraph')}")
            return
        if done == 1:
            self.first = now
        left = f", about {(now - self.first) / (done - 1) * (total - done):.0f} s left" if done > 1 else ""
        self.step(f"lowering for XNNPACK: {done} of {total} subgraphs{left}")


def write_program(
    target: Path,
    twin: StaticTwin,
    card: Card,
    given: BuildJob | Manifest,
    partitioner: str,
    front: Callable[[StaticTwin], nn.Module] = Front,
    step: Step = lambda stage: None,
) -> None:
    """Write *twin* to *target*, with the capacities and the mask of *given*.

    Args:
        target: the file.
        twin: of the largest capacity.
        card: of its network.
        given: capacities, mask and precision.
        partitioner: "xnnpack" or "vulkan".
        front: makes what is exported, which takes lr, mask and slots by name.
        step: receives the stages.

    Raises:
        ExportError: it cannot be exported or lowered.
        InputError: as `export_twin`.
    """
    facts = {**model_facts(twin, card, given.capacities), "ppexport.precision": given.precision}
    try:
        with quiet_lowering():
            step("exporting the graph")
            program = export_twin(twin, given, front, partitioner)
            versions = {name: version(name) for name in ("torch", "executorch")}
            made_from = [describe_graph(program), facts, partitioner, versions, sources_hash()]
            content = kept_or_made(sha256_text(repr(made_from)), lambda: lower(program, facts, partitioner, step))
    except PpexportError:
        raise
    except Exception as error:  # torch.export and every pass of ExecuTorch raise their own kinds
        raise ExportError(f"ExecuTorch cannot lower the twin: {first_line(error)}") from error
    target.write_bytes(content)
