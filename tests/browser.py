"""A headless Chromium, driven over its DevTools protocol: pages as a person sees them, in real time."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run", "--hide-scrollbars"]

PATIENCE = 60  # seconds, on a busy machine


class Page:
    """One tab."""

    def __init__(self, socket):
        self._socket, self._ids = socket, itertools.count(1)

    def open(self, url: str) -> None:
        self._send("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """What a script gives, as plain values."""
        return self._send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)["result"].get("value")

    @property
    def text(self) -> str:
        return self.evaluate("document.body ? document.body.innerText : ''") or ""

    def wait_for(self, *texts: str) -> str:
        """The page's text, once it holds all of these."""
        return _until(lambda: all(one in (text := self.text) for one in texts) and text,
                      lambda: f"{[one for one in texts if one not in self.text]} not on the page, which says:\n{self.text}")

    def click(self, text: str) -> None:
        """Clicks, as a mouse does, the last of the elements that say exactly this, once there is one."""
        place = _until(lambda: self.evaluate(f"""(() => {{
          const found = [...document.querySelectorAll('body *')]
            .filter(one => one.innerText?.trim() === {json.dumps(text)}).at(-1);
          if (!found) return null;
          found.scrollIntoView({{block: 'center'}});
          const box = found.getBoundingClientRect();
          return {{x: box.x + box.width / 2, y: box.y + box.height / 2}};
        }})()"""), lambda: f"nothing to click on says {text}; the page says:\n{self.text}")
        for kind in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def fill(self, label: str, value: str) -> None:
        """Types into the field below a label that begins so."""
        self.evaluate(f"""(() => {{
          let place = [...document.querySelectorAll('label')].find(one => one.innerText.startsWith({json.dumps(label)}));
          while (!place.querySelector('input')) place = place.parentElement;
          place.querySelector('input').focus();
        }})()""")
        self._send("Input.insertText", text=value)

    def picture(self, file: Path) -> None:
        """What is seen, as PNG."""
        file.write_bytes(base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"]))

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv(timeout=60))).get("id") != number:
            pass  # an event
        return answer["result"]


def _until(condition: Callable[[], Any], otherwise: Callable[[], str]) -> Any:
    """What a condition gives once it gives something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.3)
    pytest.fail(otherwise())


def chromium() -> str:
    """The program; skips the test where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here")
    return found


@contextmanager
def browser(folder: Path, width: int = 1400, height: int = 1000):
    """A ``Page`` of a browser with a profile of its own in a folder; skips the test where there is no Chromium."""
    process = subprocess.Popen([chromium(), *FLAGS, "--force-prefers-reduced-motion", "--remote-debugging-port=0",
                                f"--user-data-dir={folder}", f"--window-size={width},{height}",
                                "about:blank"], stderr=subprocess.PIPE, text=True)
    try:
        for line in process.stderr:
            if found := re.search(r"ws://127.0.0.1:(\d+)/", line):
                break
        targets = httpx.get(f"http://127.0.0.1:{found[1]}/json", trust_env=False).json()
        page = next(one for one in targets if one["type"] == "page")
        with connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None) as socket:
            yield Page(socket)
    finally:
        process.kill()
        process.wait()

