"""Twin -> a folder that is a page: the ONNX file, what runs it in a browser, and the page's own files as they are.

model.onnx            as the backend `onnx` makes it
index.html ...        all of the folder `page`, in which nothing is generated: what differs stands in the manifest
ort*.mjs, ort*.wasm   onnxruntime-web, pinned by hashes (`runtime_files.py`)
chelsea.png ...       free pictures to try
LICENSES.txt          of all of these
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

import ppexport
from ppexport.backends.backend import BuildJob, Built
from ppexport.backends.onnx.build_onnx import MODEL, build_graph
from ppexport.backends.web.runtime_files import PACKAGE, VERSION, read_runtime
from ppexport.backends.web.stay_on_gpu import stay_on_gpu
from ppexport.errors import UnavailableError
from ppexport.imaging.bicubic import crop_to_multiple, resize_bicubic
from ppexport.imaging.images import photo_folder, read_image

PAGE = Path(__file__).parent / "page"
PAGE_SUFFIXES = (".html", ".css", ".mjs", ".js")
LICENCES = "LICENSES.txt"
SAMPLES = ("chelsea.png", "rocket.jpg")
"""Bundled photographs that the page offers, at half their size: about a dozen tiles of 64x64 each."""


def build_for_web(job: BuildJob) -> Built:
    """Write all files of a page into the job's folder.

    Raises:
        InputError: the calibration lacks a tensor of this graph, or `ort` is not the pinned runtime.
        ExportError: a stage or a check of the graph failed.
        UnavailableError: the runtime, or the licence of a part, is not on this machine.
    """
    options = job.options
    # The flavour `ort` is arranged for CPUs.
    passes = [stay_on_gpu] if options.webgpu and options.flavour == "portable" else []
    details = build_graph(job, job.twin(flavour=options.flavour), passes)
    job.step("adding the page")
    page = {path.name: path.read_bytes() for path in sorted(PAGE.glob("*")) if path.suffix in PAGE_SUFFIXES}
    runtime = read_runtime(options.ort, options.webgpu)
    samples = {Path(name).with_suffix(".png").name: sample(photo_folder() / name) for name in SAMPLES}
    contents = {**page, **runtime, **samples, LICENCES: licences(job.card.licence).encode()}
    for name, content in contents.items():
        (job.folder / name).write_bytes(content)
    details["build"] = {"onnxruntime_web": VERSION, "webgpu": options.webgpu, "samples": list(samples)}
    return Built([MODEL, *contents], options.flavour, details)


def sample(photo: Path) -> bytes:
    """A PNG of the file *photo* at half its size."""
    pixels = crop_to_multiple(np.asarray(read_image(photo).rgb, np.uint8), 2)
    stream = BytesIO()
    Image.fromarray(resize_bicubic(pixels, 2)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def licences(weights: str) -> str:
    """The licences of everything in a page, as one text; *weights* is that of the model.

    The package of npm has no licence text, and the one for Python has those of the same sources.

    Raises:
        UnavailableError: a text is not on this machine. A page without it may not be published.
    """
    import onnxruntime

    parts = {
        "The page, and the code that made it: ppexport": own_licence(),
        "The weights in model.onnx": f"{weights}\n",
        "The pictures": _text(photo_folder() / "LICENSES.md"),
        f"The runtime: {PACKAGE} {VERSION}": _text(Path(onnxruntime.__file__).parent / "LICENSE"),
        f"Third-party parts of the runtime, as listed by onnxruntime {onnxruntime.__version__}": _text(
            Path(onnxruntime.__file__).parent / "ThirdPartyNotices.txt"
        ),
    }
    return "\n\n".join(f"{title}\n{'=' * len(title)}\n\n{text}" for title, text in parts.items())


def own_licence() -> str:
    """The text of ppexport's licence, of an installed copy or of a checkout. Raises UnavailableError."""
    try:
        listed = distribution("ppexport").files or ()
    except PackageNotFoundError:
        listed = ()
    installed = next((Path(str(file.locate())) for file in listed if file.name == "LICENSE"), None)
    return _text(installed or Path(ppexport.__file__).parents[1] / "LICENSE")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UnavailableError(
            f"{path} cannot be read ({error.strerror}), and a page may not be published without this licence: install "
            "its package again"
        ) from None
