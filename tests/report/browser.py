"""Debian's Chromium, driven through chromedriver by the WebDriver protocol (W3C), with nothing to install besides."""

import base64
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ..processes import wait_until

AVAILABLE = all(map(shutil.which, ("chromium", "chromedriver")))
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE = 300.0  # seconds for what it writes: none on an idle machine, many where the disk is busy
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "ArrowLeft": "\ue012", "ArrowUp": "\ue013"}


class Browser:
    """A headless browser that nothing is left of; use it as a context.

    Args:
        folder: for its profile, its driver's log and what it downloads.
        size: of the window, in pixels.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1400, 900)):
        self.folder, self.size = folder, size

    def __enter__(self) -> "Browser":
        log = self.folder / "driver.log"
        with open(log, "w") as file:
            self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=file, stderr=subprocess.STDOUT)
        try:
            self.base = f"http://127.0.0.1:{self._port(log)}"
            own = [f"--window-size={self.size[0]},{self.size[1]}", f"--user-data-dir={self.folder}/profile"]
            options = {"args": [*FLAGS, *own], "prefs": {"download.default_directory": str(self.folder)}}
            wanted = {"capabilities": {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}}
            self.base += f"/session/{self._ask('POST', '/session', wanted)['sessionId']}"
        except BaseException:
            self.driver.terminate()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self.driver.terminate()
            self.driver.wait(10)

    def open(self, page: Path) -> None:
        """Load a file."""
        self._ask("POST", "/url", {"url": page.absolute().as_uri()})

    def script(self, code: str) -> Any:
        """What `return ...` gives in the page."""
        return self._ask("POST", "/execute/sync", {"script": code, "args": []})

    def keys(self, *names: str) -> None:
        """Press keys one after another: names of `KEYS`, or texts that are typed."""
        typed = [key for name in names for key in ([KEYS[name]] if name in KEYS else name)]
        actions = [{"type": kind, "value": key} for key in typed for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def click(self, selector: str) -> None:
        """Click on the first element that a CSS selector finds."""
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{next(iter(found.values()))}/click", {})

    def drag(self, start: tuple[int, int], by: tuple[int, int]) -> None:
        """Press the mouse at a place, move it, and let it go."""
        end = {"x": start[0] + by[0], "y": start[1] + by[1]}
        moves: list[dict] = [
            {"type": "pointerMove", "x": start[0], "y": start[1]}, {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "duration": 20, **end}, {"type": "pointerUp", "button": 0},
        ]  # fmt: skip
        self._ask("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": moves}]})

    def wait_until_kept(self, text: str) -> None:
        """Wait for a text in the local storage on disk, where it comes some seconds after the page wrote it."""
        logs = self.folder / "profile/Default/Local Storage/leveldb"
        kept = text.encode()
        wait_until(lambda: any(kept in path.read_bytes() for path in logs.glob("*.log")), self.driver, PATIENCE)

    def downloaded(self, name: str) -> Path:
        """The path of a file that the page saves, once it is there under its own name, and so whole."""
        path = self.folder / name
        wait_until(path.is_file, self.driver, PATIENCE)
        return path

    def screenshot(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def _port(self, log: Path) -> int:
        wait_until(lambda: "successfully on port" in log.read_text(), self.driver, PATIENCE)
        return int(log.read_text().split("successfully on port")[1].split()[0].rstrip("."))

    def _ask(self, method: str, path: str, content: dict | None = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error
