"""`ppexport serve`: a page on this machine, or in the local network."""

from __future__ import annotations

import secrets
import threading
from typing import Annotated

import typer

from ppexport.cli.browser import Lan, LanAddress, listening_address, show_address
from ppexport.cli.console import emit_json
from ppexport.cli.options import ArtifactFolder, Json
from ppexport.errors import InputError

EXAMPLE = "Example: ppexport serve page"


def serve(
    page: ArtifactFolder,
    port: Annotated[int, typer.Option(min=0, max=65535, help="where to listen; a free port if left out")] = 0,
    lan: Lan = False,
    lan_address: LanAddress = None,
    json: Json = None,
) -> None:
    """Serve an artifact of the backend web, so that its page can be opened, until Ctrl-C.

    It sends the headers that give a page threads, and the files of the manifest alone. Without --lan only this machine
    can open it; with --lan whoever has the address, which holds a secret. --json writes the address.
    """
    from ppexport.backends.web.run_files import PageFiles
    from ppexport.backends.web.run_server import LOOPBACK, Server
    from ppexport.device.artifact import read_artifact

    if lan_address is not None and not lan:
        raise InputError("--lan-address is for --lan")
    files = PageFiles(read_artifact(page), "index.html")
    address, token = (listening_address(lan_address), secrets.token_urlsafe(18)) if lan else (LOOPBACK, "")
    server = Server(files, token, address, port)
    try:
        emit_json(json, {"url": server.url})
        show_address(server.url, "to see the page, until Ctrl-C", lan=lan)
        # With a time, so that Ctrl-C is noticed under Windows as well.
        while not threading.Event().wait(1.0):
            pass
    except KeyboardInterrupt:
        # The usual end.
        pass
    finally:
        server.close()
