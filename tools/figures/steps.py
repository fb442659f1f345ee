"""What is measured of a bundled model, step by step, and whether it was, with the weights as they are.

What is out of date is read off the files themselves, which name the weights that they were measured with by their hash.
So a run that was stopped continues where it was, and a second one finds nothing to do. A model folder without figures,
which needs a card.yaml and weights.safetensors alone, gets those of `STANDARD`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from training.data import HELD_OUT, TRAINING

from figures.places import Place, with_hash
from figures.tables import ABLATION, PRECISION, README, SEARCH, has_place, make_pages
from ppexport.backends.backend import find_backend
from ppexport.cli.demo import MODEL as DEMO_MODEL
from ppexport.cli.demo import PHOTO, SIZE, side_by_side
from ppexport.errors import EXIT_UNAVAILABLE, InputError, PpexportError
from ppexport.files import atomic_path, sha256_file, write_text
from ppexport.imaging.bicubic import crop_to_multiple, enlarge_bicubic, resize_bicubic
from ppexport.imaging.images import Picture, photo_folder, read_image, write_image
from ppexport.networks.card import CARD, read_card
from ppexport.quantize.calibration import load_calibration
from ppexport.quantize.recipe import read_recipe
from ppexport.report.records import NETWORK, read_numerics

STANDARD = (
    "onnx-fp32-portable-full-64x64",
    "onnx-fp32-ort-set-64x64",
    "onnx-fp16-portable-full-64x64",
    "onnx-int8-portable-full-64x64",
    "coreml-fp16-portable-full-64x64",
    "litert-fp32-lite-full-64x64",
    "web-fp32-portable-set-64x64",
)
"""Artifacts whose parity every bundled model has, in the order in which it is measured; then come the others that its
numerics.yaml has: to record one more, export it, run parity and `ppexport report --record` once."""
LAST = ("executorch",)
"""Backends whose exports take minutes."""
SETS = ("set5", "set14")
"""Data sets of the network's own PSNR-Y."""
TILED = {"set5": ("onnx-fp32-portable-full-64x64", "onnx-int8-portable-full-64x64")}
"""{data set: artifacts whose PSNR-Y on it every bundled model has}."""
SHA256 = "weights_sha256"
TAIL = 40
"""Lines of a failed command that are shown."""


class CommandError(PpexportError):
    """A command failed, with the exit code *code*."""

    def __init__(self, command: Sequence[str], code: int, output: str) -> None:
        self.exit_code = code
        self.last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
        tail = "\n".join(output.splitlines()[-TAIL:])
        super().__init__(f"{tail}\nended with code {code}: {' '.join(command)}")


def run_command(command: Sequence[str], root: Path) -> None:
    """Run *command* in *root*. Raises CommandError, with what it printed."""
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            # It removes its unfinished files then.
            process.terminate()
            process.communicate()
            raise
    if process.returncode:
        # A process that a signal ended has a negative code.
        code = process.returncode if process.returncode > 0 else 128 - process.returncode
        raise CommandError(command, code, output)


@dataclass(frozen=True)
class Step:
    """Something to measure; *fresh* tells whether that was done with these weights.

    Where *may_lack*, a machine that has not what it needs leaves it as it is.
    """

    name: str
    fresh: Callable[[], bool]
    run: Callable[[], None]
    may_lack: bool = False


@dataclass(frozen=True)
class Model:
    """A bundled model of the checkout *root*; *images* holds the data sets, and *run* runs a command."""

    root: Path
    folder: Path
    images: Path
    run: Callable[[Sequence[str], Path], None] = field(default=run_command)

    @property
    def name(self) -> str:
        """Of the model, its folder, its calibration and its recipe."""
        return self.folder.name

    @property
    def scale(self) -> int:
        """Upscaling factor."""
        return read_card(self.folder).scale

    @property
    def sha256(self) -> str:
        """Of the weights as they are."""
        return sha256_file(self.folder / "weights.safetensors")

    @property
    def ranges(self) -> Path:
        """The calibration."""
        return self.root / "calibration" / "ranges" / f"{self.name}.npz"

    @property
    def recipe(self) -> Path:
        """What becomes int8."""
        return self.root / "calibration" / "recipes" / f"{self.name}.yaml"

    def pictures(self, data_set: str) -> Path:
        """The HR and LR files of *data_set*."""
        return self.images / data_set / f"image_SRF_{self.scale}"

    def ppexport(self, *arguments: str | Path) -> None:
        """Run a command of ppexport. Raises CommandError."""
        self.run([sys.executable, "-m", "ppexport", *map(str, arguments)], self.root)

    def is_fresh(self, entry: Mapping[str, Any] | None) -> bool:
        """Whether *entry* was measured with these weights."""
        return entry is not None and entry.get(SHA256) == self.sha256

    def steps(self) -> Iterator[list[Step]]:
        """The steps, in groups: the first group of every model comes before the second of any."""
        yield [Step("card", self._card_is_true, self._write_card)]
        yield [Step(f"evaluation {name}", *self._evaluation(name)) for name in SETS]
        if self.name == DEMO_MODEL:
            yield [Step("pictures", self._pictures_are_fresh, self._draw_pictures)]
        yield [
            Step("ranges", self._ranges_are_fresh, self._calibrate),
            Step("recipe", self._recipe_is_fresh, self._search, may_lack=True),
        ]
        numerics = read_numerics(self.folder)
        wanted = [(name, key) for name, keys in (*TILED.items(), *numerics["evaluation"].items()) for key in keys]
        evaluated = [(name, key) for name, key in dict.fromkeys(wanted) if key != NETWORK]
        recorded = {*numerics["parity"], *(_exported(key) for _, key in evaluated)}
        others = sorted(recorded - set(STANDARD), key=lambda key: (key.split("-")[0] in LAST, key))
        for keys in (STANDARD, others):
            yield [
                Step(f"artifact {key}", *self._artifact(key, {n: k for n, k in evaluated if _exported(k) == key}), True)
                for key in keys
            ]
        if has_place(self.folder / README, ABLATION):
            yield [Step("ablation", self._ablation_is_fresh, self._ablate)]

    def _card_is_true(self) -> bool:
        weights = read_card(self.folder).weights
        return weights is not None and weights.sha256 == self.sha256

    def _write_card(self) -> None:
        path = self.folder / CARD
        write_text(path, with_hash(path.read_text(encoding="utf-8"), self.sha256))

    def _evaluation(self, data_set: str) -> tuple[Callable[[], bool], Callable[[], None]]:
        folder = self.pictures(data_set)
        return (
            lambda: self.is_fresh(read_numerics(self.folder)["evaluation"].get(data_set, {}).get(NETWORK)),
            lambda: self.ppexport("evaluate", self.name, "--hr", folder, "--lr", folder, "--record", data_set),
        )

    def _ranges_are_fresh(self) -> bool:
        return self.ranges.is_file() and load_calibration(self.ranges).about.weights_sha256 == self.sha256

    def _calibrate(self) -> None:
        images = ("--images", "calibration/images", "--size", "32x32", "--crops", "40")
        self.ppexport("calibrate", self.name, *images, "-o", self.ranges)

    def _recipe_is_fresh(self) -> bool:
        return self.recipe.is_file() and read_recipe(self.recipe).weights_sha256 == self.sha256

    def _search(self) -> None:
        kodak = self.images / "kodak24"
        if not kodak.is_dir():
            raise Lacking(f"{kodak} is missing")
        out = self.root / "runs" / f"search-{self.name}-{self.sha256[:12]}"
        options = ("--calibration", self.ranges, "--crops", "32", "--rounds", "5")
        self.ppexport("quantize-search", self.name, "--images", kodak, *options, "-o", out)
        make_pages(self.folder)
        if has_place(self.folder / PRECISION, SEARCH):
            picture = "![Change of PSNR-Y against time and size](precision.png)"
            found = (out / "pareto.md").read_text(encoding="utf-8").strip()
            Place(self.folder / PRECISION, SEARCH).write(f"{found}\n\n{picture}")
            shutil.copyfile(out / "pareto.png", self.folder / "precision.png")
        # Last: it is what tells that the search is done.
        with atomic_path(self.recipe) as temporary:
            shutil.copyfile(out / "recipe.yaml", temporary)
        shutil.rmtree(out)

    def _artifact(self, key: str, sets: Mapping[str, str]) -> tuple[Callable[[], bool], Callable[[], None]]:
        """Parity of the artifact that *key* stands for, and its PSNR-Y on *sets*, {name: key there}."""

        def stale() -> list[str]:
            numerics = read_numerics(self.folder)
            found = [] if self.is_fresh(numerics["parity"].get(key)) else ["parity"]
            wanted = ((name, numerics["evaluation"].get(name, {}).get(entry)) for name, entry in sets.items())
            return [*found, *(name for name, entry in wanted if not self.is_fresh(entry))]

        def run() -> None:
            backend, precision, flavour, slots, size = key.split("-")
            if precision != "fp32":
                if not self._ranges_are_fresh():
                    raise InputError(f"{self.ranges} is of other weights: the step `ranges` comes first")
                # An artifact made by a default recipe would look like one of the recipe that was found.
                if precision not in ("fp16", "w8") and not self._recipe_is_fresh():
                    raise Lacking(f"{self.recipe} is of other weights")
            options = ["--backend", backend, "--precision", precision, "--capacity", slots, "--size", size]
            if "flavour" in find_backend(backend).options().model_fields:
                options += ["--flavour", flavour]
            with tempfile.TemporaryDirectory(prefix="ppexport-numbers-") as scratch:
                artifact, saved = Path(scratch, "artifact"), Path(scratch, "parity")
                self.ppexport("export", self.name, *options, "-o", artifact)
                for what in stale():
                    if what == "parity":
                        self.ppexport("parity", artifact, "-o", saved)
                        self.ppexport("report", saved, "--record", "-o", Path(scratch, "report.html"))
                    else:
                        folder = self.pictures(what)
                        self.ppexport("evaluate", artifact, "--hr", folder, "--lr", folder, "--record", what)
            if stale():
                raise InputError(f"exporting {key} recorded another artifact: remove that row of numerics.yaml")

        return (lambda: not stale()), run

    def _ablation_is_fresh(self) -> bool:
        return f"`{self.sha256[:12]}…`" in Place(self.folder / README, ABLATION).read()

    def _ablate(self) -> None:
        sets = ["--data", "calibration=calibration/images"]
        training = [self.images / name for name in TRAINING]
        if all(folder.is_dir() for folder in training):
            folders = (part for folder in training for part in ("--train-data", str(folder)))
            sets = [*folders, "--holdout", str(HELD_OUT), *sets]
        for name in SETS:
            sets += ["--data", f"{name}={self.pictures(name)}:{self.pictures(name)}"]
        state = self.root / "runs" / "ablation.json"
        out = self.folder / README
        self.run(
            [sys.executable, "tools/ablation.py", self.name, "--state", str(state), "--out", str(out), *sets], self.root
        )

    def _pictures_are_fresh(self) -> bool:
        path = self.folder / "comparison.png"
        if not path.is_file():
            return False
        with Image.open(path) as image:
            return bool(image.info.get(SHA256) == self.sha256)

    def _draw_pictures(self) -> None:
        """The detail of `ppexport demo`. The mask, which depends on the picture alone, stays as it is."""
        truth = crop_to_multiple(np.asarray(read_image(photo_folder() / PHOTO).rgb, np.uint8), self.scale)
        lr = resize_bicubic(truth, self.scale)
        with tempfile.TemporaryDirectory(prefix="ppexport-numbers-") as scratch:
            artifact, low, high = (Path(scratch, name) for name in ("artifact", "low.png", "high.png"))
            write_image(low, Picture(lr))
            self.ppexport("export", self.name, "--size", "{}x{}".format(*SIZE), "-o", artifact)
            self.ppexport("upscale", artifact, low, high)
            result = np.asarray(read_image(high).rgb, np.uint8)
        facts = PngImagePlugin.PngInfo()
        facts.add_text(SHA256, self.sha256)
        sheet = side_by_side(enlarge_bicubic(lr, self.scale), result, truth, self.scale)
        with atomic_path(self.folder / "comparison.png") as temporary:
            sheet.save(temporary, "PNG", pnginfo=facts, optimize=True)


class Lacking(PpexportError):
    """Something that a step needs is not here."""

    exit_code = EXIT_UNAVAILABLE


def _exported(key: str) -> str:
    """The artifact whose evaluation is called *key*."""
    return key.replace("-weights-", "-")
