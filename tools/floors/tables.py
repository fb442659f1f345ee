"""The floors as tables and as a section of SPEED.md."""

from __future__ import annotations

import numpy as np
from peers.arithmetic import FLOP_PER_MAC
from peers.lineup import BOUND
from peers.report import Table, milliseconds, range_of, shares, times

from floors.part import ROWS
from floors.result import ARTEFACT, Floors

OWN, BEST = "artefact's", "best"


def fine(ms: float) -> str:
    """Milliseconds of a small part."""
    return f"{ms:.3f}" if ms < 1 else milliseconds(ms)


def giga(macs: int) -> str:
    """Multiply-adds in G, empty for none."""
    return f"{macs / 1e9:.3f}" if macs else ""


def mean_ms(seconds: list[float]) -> float:
    """Median of rounds, in ms."""
    return 1e3 * float(np.median(seconds))


def parts_table(floors: Floors) -> Table:
    """Every formulation of every part, and the sums."""
    rows = []
    for part in floors.parts:
        kernels = floors.kernels[part.key]
        for i, kernel in enumerate(kernels):
            spread, form = floors.spread(kernel.key), kernel.formulation
            best = kernel is floors.chosen[part.key]
            marks = [OWN] * (i == 0) + [BEST] * best + [form.layout] * (form.layout != ROWS)
            head = [part.name, str(part.count), giga(part.macs)] if i == 0 else ["", "", ""]
            middle = [form.name, ", ".join(marks), fine(spread.median), f"{fine(spread.p10)} to {fine(spread.p90)}"]
            total = milliseconds(floors.floor_ms(part)) if best else ""
            rows.append([*head, *middle, total, f"{floors.differences[kernel.key]:.1g}"])
    for key, why in floors.skipped.items():
        rows.append([key, "", "", why, "", "", "", "", ""])
    columns = [
        "part", "times", "G multiply-adds", "formulation", "", "ms, median", "p10 to p90", "best, ms x times",
        "apart",
    ]  # fmt: skip
    return Table("Parts and their formulations", columns, rows)


def sums_table(floors: Floors) -> Table:
    """The whole network: the artefact beside the sums, and both beside the bound."""
    rows = []
    for name, chosen in (
        ("sum of the best formulations: the floor", floors.chosen),
        ("sum of the best formulations in rows, which fit each other", floors.fitting()),
        ("sum of the artefact's own formulations", floors.own()),
    ):
        seconds = floors.sums(chosen)
        relative = [times(floors.to_artefact(chosen)), times(floors.to_bound(seconds))]
        rows.append([name, milliseconds(mean_ms(seconds)), *relative])
    attention = floors.sums(floors.chosen, attention_only=True)
    rows.append(
        [
            f"of the floor, attention: {shares(floors.attention_share())}",
            milliseconds(mean_ms(attention)),
            "",
            times(floors.to_bound(attention)),
        ]
    )
    spread, bound = floors.spread(ARTEFACT), floors.spread(BOUND)
    artefact = floors.to_bound(floors.rounds(ARTEFACT))
    rows.append([f"the artefact ({range_of(spread)})", milliseconds(spread.median), "1.00", times(artefact)])
    rows.append([f"the arithmetic bound ({range_of(bound)})", milliseconds(bound.median), "", "1.00"])
    columns = ["", "ms, median", "artefact / this (95 %)", "this / bound (95 %)"]
    return Table("The whole network", columns, rows)


def arithmetic_table(floors: Floors) -> Table:
    """What the multiply-adds of every part take at the rate of sgemm, beside its floor; the largest excess first."""
    lines = []
    for part in floors.parts:
        bound = 1e3 * FLOP_PER_MAC * part.count * part.macs / floors.rate
        lines.append((part.name, part.count * part.macs, bound, floors.floor_ms(part)))
    lines.sort(key=lambda line: line[2] - line[3])
    whole = [sum(column) for column in zip(*(line[1:] for line in lines), strict=True)]
    lines.append(("all parts", int(whole[0]), whole[1], whole[2]))
    rows = [
        [
            name,
            giga(macs),
            fine(bound) if macs else "",
            fine(floor),
            f"{floor / bound:.1f}" if macs else "",
            fine(floor - bound),
            f"{100 * floor / whole[2]:.1f} %",
        ]
        for name, macs, bound, floor in lines
    ]
    columns = [
        "part, all times that it occurs", "G multiply-adds", "at the rate of sgemm, ms", "floor, ms",
        "floor / arithmetic", "floor less arithmetic, ms", "share of the floor",
    ]  # fmt: skip
    return Table("Where the floor is above the arithmetic", columns, rows)


def tables(floors: Floors) -> list[Table]:
    """All tables."""
    return [parts_table(floors), sums_table(floors), arithmetic_table(floors)]


def markdown(floors: Floors) -> str:
    """The section of SPEED.md."""
    height, width = floors.size
    head = (
        f"Measured on {floors.machine.sentence(floors.threads)}. LR {height}x{width}, {floors.outcome.done} rounds; "
        f"sgemm of 1024x1024 reached {floors.rate / 1e9:.0f} GFLOP/s (best {max(floors.rates) / 1e9:.0f}).\n\n"
        "The *floor* of a part is the time of the fastest way to write it with operators that ONNX Runtime has, alone. "
        f"Each formulation stands {floors.copies} times in a graph of its own, so that the call and the waking of "
        "threads count little; every copy has inputs and outputs of its own, as in a network, where no kernel finds "
        "them in its caches because it used them last. Weights are constants, and results agree with those of the "
        "others (*apart*: the largest absolute difference). All take turns with the artefact and with sgemm, forth and "
        "back, each time with one untimed run before the timed one. Formulations in another layout than rows would "
        "need their neighbours in it too; what that costs is not counted, so the floor is a lower bound. Ratios are "
        "taken per round and have a bootstrap 95 % interval. The bound is the published network's arithmetic, "
        f"{floors.network_flop / 1e9:.2f} GFLOP; the parts compute "
        f"{FLOP_PER_MAC * floors.computed_macs / 1e9:.2f}, since shifted windows are cut along the wrap and a block's "
        "first keys and values are constants."
    )
    return "\n\n".join([head, *(table.markdown() for table in tables(floors))])
