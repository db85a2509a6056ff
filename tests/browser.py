"""A headless Chromium, driven by its DevTools protocol over two pipes; nothing but the library."""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 30.0
"""Seconds to wait for an answer, or for what a test waits for."""
KEYS = {
    "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
    "Tab": 9,
}  # fmt: skip


def chromium() -> str | None:
    """Where it is, if it is installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Page:
    """A tab, and what went wrong in it: ``problems`` has console errors and exceptions."""

    def __init__(self, to: int, came: int) -> None:
        self._to, self._from, self._rest, self._number = to, came, b"", 0
        self._session = ""
        self.problems: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        joined = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = joined["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        said: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            said["sessionId"] = self._session
        os.write(self._to, json.dumps(said).encode() + b"\0")
        while (heard := self._hear()).get("id") != self._number:
            self._note(heard)
        assert "error" not in heard, heard["error"]
        return heard["result"]

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            assert select.select([self._from], [], [], PATIENCE)[0], "no answer"
            came = os.read(self._from, 1 << 20)
            assert came, "the browser ended"
            self._rest += came
        line, _, self._rest = self._rest.partition(b"\0")
        return json.loads(line)

    def _note(self, heard: dict[str, Any]) -> None:
        said = heard.get("params", {})
        match heard.get("method"):
            case "Runtime.exceptionThrown":
                details = said["exceptionDetails"]
                what = details.get("exception", {}).get("description", details["text"])
                self.problems.append(what)
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                self.problems.append(str([each.get("value") for each in said["args"]]))
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                entry = said["entry"]
                self.problems.append(f"{entry['text']} {entry.get('url', '')}")
            case "Network.requestWillBeSent":
                self.requests.append(said["request"]["url"])

    def resize(self, width: int, height: int, *, phone: bool = False, scale: float = 1) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=phone,
        )  # fmt: skip

    def prefer(self, **features: str) -> None:
        """As ``prefers_color_scheme="dark"``."""
        named = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.send("Emulation.setEmulatedMedia", features=named)

    def go(self, url: str) -> None:
        assert "errorText" not in self.send("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """What an expression evaluates to, awaited."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until it is true, as JavaScript has it."""
        deadline = time.monotonic() + PATIENCE
        while not self.js(f"!!({expression})"):
            assert time.monotonic() < deadline, f"{expression}; {self.problems}"
            self.js("new Promise(requestAnimationFrame)")

    def press(self, key: str) -> None:
        """A key, and what it types where it is a character."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"windowsVirtualKeyCode": KEYS[key]} if key in KEYS else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    def touch(self, x: float, y: float, *then: float) -> None:
        """A finger at ``y``, that moves to each of ``then`` and is taken away."""
        for at in (y, *then):
            kind = "touchMove" if at != y else "touchStart"
            self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": at}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def picture(self, path: Path, *, whole: bool = False) -> None:
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.contextmanager
def browsing() -> Iterator[Page]:
    """A tab of a browser of its own, that knows nothing yet."""
    program = chromium()
    assert program
    theirs, to = os.pipe()
    came, back = os.pipe()
    # it reads 3 and writes 4, which a shell makes of them: where a test has imported JAX, no Python
    # may fork
    given = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, back)]
    handing = ["bash", "-c", f'exec 3<&{given[0]} 4>&{given[1]}; exec "$@"', "bash"]
    for end in (theirs, back):
        os.close(end)
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [
                *handing, program, "--headless=new", "--remote-debugging-pipe",
                f"--user-data-dir={folder}",
                "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                "--disable-background-networking", "--disable-extensions", "--hide-scrollbars",
                "--disable-component-update", "--disable-sync", "--no-proxy-server",
            ],
            pass_fds=given,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in given:
            os.close(end)
        try:
            yield Page(to, came)
        finally:
            os.close(to)
            os.close(came)
            process.kill()
            process.wait()
