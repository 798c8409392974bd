"""stillroom ui: the Prefect UI of the server that builds report to."""

import os
import sys
from typing import Annotated

import typer

from flows.cli.shared import Json, print_json, say


def ui(
    stop: Annotated[bool, typer.Option("--stop", help="Stop this user's server; its history stays.")] = False,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="The port for a server that isn't running yet.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser where there is a screen.")] = True,
    as_json: Json = False,
) -> None:
    """Open the Prefect UI: builds as they run, with their stages, samples and proofs."""
    from flows.server import Server, ensure_server, server_status, stop_server

    if stop:
        stopped = stop_server()
        if as_json:
            print_json({"stopped": stopped})
        else:
            say("stopped the server" if stopped else "no server of yours is running")
        return
    url = ensure_server(port=port, say=say)
    server = server_status() or Server(url)
    if as_json:
        print_json({"ui": server.ui_url, "api": server.url, "pid": server.pid, "port": server.port, "started": server.started})
        return
    print(server.ui_url)
    if browser and sys.stdout.isatty() and _has_screen():
        import webbrowser

        webbrowser.open(server.ui_url)


def _has_screen() -> bool:
    """On a machine without one, `webbrowser` would start a text browser in this terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
