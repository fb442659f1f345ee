"""The comparison as tables, and its place in a model's SPEED.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from places import insert, markers

from peers.figures import Spread
from peers.lineup import PEERS
from peers.result import Comparison
from ppexport.artifact import ONNX_FLAVOURS
from ppexport.console import decibel, percent
from ppexport.errors import InputError
from ppexport.files import write_text
from ppexport.profile.statistics import Interval

RACE = "peers"
SIZES = "peers sizes"
"""Names of the places in SPEED.md: <!-- NAME --> and <!-- /NAME -->."""


@dataclass(frozen=True)
class Table:
    """A table for the terminal and for Markdown alike; columns from the second on are numbers."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table under its title."""
        rule = ["---", *("---:" for _ in self.columns[1:])]
        lines = [self.columns, rule, *self.rows]
        return "\n".join([f"**{self.title}**", "", *(f"| {' | '.join(cells)} |" for cells in lines)])


def milliseconds(value: float) -> str:
    """ms with three digits or more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def range_of(spread: Spread) -> str:
    """p10 to p90."""
    return f"{milliseconds(spread.p10)} to {milliseconds(spread.p90)}"


def times(interval: Interval) -> str:
    """A ratio with its interval."""
    return f"{interval.middle:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def shares(interval: Interval) -> str:
    """A share in percent with its interval."""
    return f"{100 * interval.middle:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def label(name: str, heat: str) -> str:
    """*name* without the flavour in the table of a flavour."""
    return name.removeprefix(f"ours, {heat}: ")


def heat_table(result: Comparison, heat: str, keys: Sequence[str], title: str, versus: str) -> Table:
    """Times of *keys* in *heat*; what could not run has a row with the reason."""
    outcome = result.outcome
    with_memory = bool(result.memory) and any(key in result.memory for key in keys)
    rows = []
    for key in keys:
        spread, faster = outcome.spread(heat, key), outcome.faster(heat, key)
        assert faster is not None
        close = outcome.decibel.get(key)
        row = [label(outcome.names[key], heat), milliseconds(spread.median), range_of(spread), times(faster)]
        row.append("" if close is None else decibel(close))
        if with_memory:
            row.append(f"{result.memory[key] / 1e6:.0f}" if key in result.memory else "")
        rows.append(row)
    columns = ["", "ms, median", "p10 to p90", f"times as fast as {versus} (95 %)", "dB to the network"]
    columns += ["peak MB"] if with_memory else []
    if heat == PEERS:
        blank = [""] * (len(columns) - 2)
        rows += [[outcome.names[key], why, *blank] for key, why in outcome.skipped.items()]
    return Table(title, columns, rows)


def pure_pass_table(result: Comparison) -> Table:
    """What Pure-Pass saves in every flavour."""
    rows = []
    for saving in result.savings:
        cost = saving.cost_without_pure
        rows.append(
            [
                saving.flavour,
                percent(saving.pure_share),
                str(saving.capacity),
                shares(saving.time_saved),
                percent(saving.macs_saved),
                times(saving.realised),
                "" if cost is None else shares(cost),
                f"{saving.host_ms:.2f}",
            ]
        )
    columns = [
        "flavour", "pure pixels", "slots", "time saved (95 %)", "multiply-adds saved", "time / multiply-adds saved",
        f"extra time at {percent(result.busy_share)} pure", "host's mask and choice, ms",
    ]  # fmt: skip
    return Table("Pure-Pass against dense ATD-light of the same flavour", columns, rows)


def tables(result: Comparison) -> list[Table]:
    """All tables of a comparison."""
    made = [heat_table(result, PEERS, result.peers(), "All programs", "plain ONNX")]
    for flavour in ONNX_FLAVOURS:
        keys = list(result.outcome.times.get(flavour, {}))
        if keys:
            title = f"Capacities of flavour {flavour}; with too few slots the surplus counts as pure"
            made.append(heat_table(result, flavour, keys, title, "dense"))
    if result.savings:
        made.append(pure_pass_table(result))
    return made


def head(result: Comparison) -> str:
    """What was measured, on what and how."""
    h, w = result.size
    lines = [
        f"Measured on {result.machine.sentence(result.threads)}. LR {h}x{w}, {result.outcome.done} rounds; "
        f"{percent(result.pure_share)} of the picture is pure.",
        "",
        "All candidates take turns in one process, A B C C B A in every round, each time with one untimed run "
        "before the timed one, so that the caches hold its own weights. Ratios are taken per round, since the "
        "machine's speed changes by a third within seconds; the table has their median and a bootstrap 95 % interval. "
        "A time is that of one call, from the picture in host memory to the picture in host memory. *Plain ONNX* is "
        "the network with the least change that makes it export (`tools/peers/plain.py`), with default options but for "
        "the number of threads and for threads that do not spin between runs; *dense* is ATD-light with the same "
        "weights, without Pure-Pass. Candidates that compute the dense network "
        "do so whatever is pure. Below 90 dB two categories that are closer than rounding fell the other way.",
    ]
    rates = result.rates
    if rates:
        lines += [
            "",
            f"*Arithmetic alone*: the dense network's convolutions, linear layers and matmuls are "
            f"{result.dense_flop / 1e9:.2f} GFLOP; in the same rounds sgemm of 1024x1024 reached "
            f"{sorted(rates)[len(rates) // 2] / 1e9:.0f} GFLOP/s (best {max(rates) / 1e9:.0f}).",
        ]
    return "\n".join(lines)


def markdown(result: Comparison, picture: str | None) -> str:
    """All of it as Markdown; *picture* is the plot's file name beside SPEED.md."""
    parts = [head(result), *(table.markdown() for table in tables(result))]
    if picture is not None:
        parts.append(f"![milliseconds of all candidates, and time over slots]({picture})")
    return "\n\n".join(parts)


def fresh(model: str) -> str:
    """A new SPEED.md."""
    places = "\n\n".join("\n".join(markers(name)) for name in (RACE, SIZES))
    return (
        f"# Speed of {model}\n\n"
        f"Written by `python tools/compare_peers.py {model} --write`, and the part on sizes by the same with "
        f"`--scale-sizes`; everything between the comments is replaced.\n\n{places}\n"
    )


def read_speed(path: Path, model: str, name: str) -> str:
    """The text of SPEED.md, a new one where there is none, once it is sure that it has the place *name*."""
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is not a folder")
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else fresh(model)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    insert(text, name, "", str(path))
    return text


def write_speed(path: Path, model: str, name: str, content: str) -> None:
    """Put *content* into the place *name* of *path*, atomically."""
    write_text(path, insert(read_speed(path, model, name), name, content, str(path)))
