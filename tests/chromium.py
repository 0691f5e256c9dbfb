"""A headless Chromium for tests, spoken to over its debugging socket."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.support import PATIENCE_S, eventually

INSTALL = "on Debian: apt-get install chromium"


def find_chromium() -> str | None:
    """Where it is."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Navigated(AssertionError):
    """Raised when the page was left while a script ran in it."""


class Page:
    """One page of the browser."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._ids = itertools.count(1)

    def open(self, url: str) -> None:
        """Load this URL."""
        self._do("Page.navigate", url=url)
        eventually(lambda: self.look("document.readyState === 'complete' && location.href !== 'about:blank'"))

    def prepare(self, script: str) -> None:
        """Run a script in each document from now on, before the document's own."""
        self._do("Page.enable")
        self._do("Page.addScriptToEvaluateOnNewDocument", source=script)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, what it resolves to."""
        answer = self._do("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def look(self, script: str) -> Any:
        """As `run`, for an expression that changes nothing; None while the browser goes to another page."""
        try:
            return self.run(script)
        except Navigated:
            return None

    def _do(self, method: str, **parameters: Any) -> dict[str, Any]:
        id = next(self._ids)
        self._connection.send(json.dumps({"id": id, "method": method, "params": parameters}))
        while (message := json.loads(self._connection.recv(60))).get("id") != id:
            pass  # what it tells unasked
        if "navigated" in message.get("error", {}).get("message", ""):
            raise Navigated(message["error"])
        assert "error" not in message, message["error"]
        result: dict[str, Any] = message["result"]
        return result


@contextlib.contextmanager
def browser(folder: Path, *flags: str) -> Iterator[Page]:
    """An empty page until the block ends. `folder`, which it makes, holds the profile and the log."""
    program = find_chromium()
    assert program is not None
    folder.mkdir()
    command = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
        "--remote-debugging-port=0", f"--user-data-dir={folder / 'profile'}", *flags, "about:blank",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        port = folder / "profile" / "DevToolsActivePort"
        where = eventually(lambda: _where(process, port, log))
        with connect(where, proxy=None, max_size=None) as connection:
            connection.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
            while (answer := json.loads(connection.recv(60))).get("id") != 0:
                pass
            (target,) = [each for each in answer["result"]["targetInfos"] if each["type"] == "page"]
        host = where.removeprefix("ws://").partition("/")[0]
        with connect(f"ws://{host}/devtools/page/{target['targetId']}", proxy=None, max_size=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _where(process: subprocess.Popen[bytes], port: Path, log: Path) -> str | None:
    """The browser's socket, once it listens."""
    assert process.poll() is None, log.read_text()
    try:
        number, path = port.read_text().split()
    except (FileNotFoundError, ValueError):
        return None
    return f"ws://127.0.0.1:{number}{path}"
