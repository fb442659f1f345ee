"""`ppexport backends`: what can be made, with which options, and whether it can be made and measured here."""

from __future__ import annotations

from ppexport.cli.console import emit_json, people
from ppexport.cli.options import Json
from ppexport.errors import how_to_install, require

EXAMPLE = "Example: ppexport backends --json -"


def backends(json: Json = None) -> None:
    """List the backends: what each makes, its precisions and options, and whether it can run here."""
    require("pydantic", "export")
    from ppexport.backends.backend import backends as registered
    from ppexport.backends.backend import missing_modules
    from ppexport.backends.options import describe_options
    from ppexport.device.target import runtimes

    console, listed = people(json), []
    for backend in registered().values():
        missing, options = missing_modules(backend), describe_options(backend.options())
        lacks = f"{', '.join(missing)} is missing: {how_to_install(backend.extra)}" if missing else backend.lacking()
        own = [runtime for runtime in runtimes().values() if runtime.backend == backend.name]
        runs = [f"{runtime.name}:{device}" for runtime in own for device in runtime.devices()]
        listed.append(
            {
                "name": backend.name,
                "summary": backend.summary,
                "precisions": list(backend.precisions),
                "calibrated": sorted(backend.calibrated),
                "options": options,
                "extra": backend.extra,
                "missing": missing,
                "lacks": lacks,
                "runtimes": runs,
            }
        )
        needs = "" if not backend.calibrated else f" (by a calibration: {', '.join(sorted(backend.calibrated))})"
        console.print(f"{backend.name}: {backend.summary}")
        console.print(f"    precisions: {', '.join(backend.precisions)}{needs}")
        for name, what in options.items():
            console.print(f"    -O {name}=...: {what}")
        console.print(f"    can be made here: {f'no, {lacks}' if lacks else 'yes'}")
        console.print(f"    can be timed here in: {', '.join(runs) or 'no runtime'}")
    emit_json(json, listed)
