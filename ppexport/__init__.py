"""ppexport puts the super-resolution transformer PP-ATD-light on edge devices.

    network = ppexport.load_network("pp_atd_light_x2")
    folder = ppexport.export(network, backend="onnx", size=(64, 64), out="x2_64")
    result = ppexport.open_artifact(folder)(lr)        # float32 (1, 3, 64, 64) in [0, 1]

Everything is loaded when it is first used, so that `import ppexport` works on a device without torch.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ppexport.backends.backend import open_artifact as open_artifact
    from ppexport.device.centers import adaptive_centers as adaptive_centers
    from ppexport.device.mask import pixel_labels as pixel_labels
    from ppexport.device.mask import pure_mask as pure_mask
    from ppexport.exporting import export as export
    from ppexport.networks.load import load_network as load_network
    from ppexport.twin.twin import make_twin as make_twin

_LAZY = {
    "load_network": "ppexport.networks.load",
    "make_twin": "ppexport.twin.twin",
    "export": "ppexport.exporting",
    "open_artifact": "ppexport.backends.backend",
    "adaptive_centers": "ppexport.device.centers",
    "pure_mask": "ppexport.device.mask",
    "pixel_labels": "ppexport.device.mask",
}

__all__ = ["__version__", *_LAZY]

try:
    __version__ = version("ppexport")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'ppexport' has no attribute {name!r}")
    try:
        value = getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ppexport"):
            raise
        from ppexport.errors import how_to_install

        raise ImportError(f"ppexport.{name} needs {error.name}: {how_to_install('export')}") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
