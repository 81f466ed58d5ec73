"""Drives headless Chromium through a pipe, by the DevTools protocol: no package and no port are needed."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

COMMAND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--hide-scrollbars",
)  # fmt: skip
START = """
import fcntl, os, sys
first, second = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(first, 3), os.dup2(second, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
CODES = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "End": 35, "Home": 36, "PageDown": 34}


class Chromium:
    """One tab. Collects console messages, exceptions, and the addresses of all requests."""

    def __init__(self, profile: Path, *, width: int = 1400, height: int = 900, dark: bool = False) -> None:
        assert COMMAND is not None
        ours, theirs = os.pipe(), os.pipe()  # commands to Chromium, answers from it: its descriptors 3 and 4
        command = [COMMAND, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        start = [sys.executable, "-c", START, str(ours[0]), str(theirs[1]), *command]
        fds = (ours[0], theirs[1])
        self._process = subprocess.Popen(
            start, pass_fds=fds, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for fd in fds:
            os.close(fd)
        self._out, self._in = os.fdopen(ours[1], "wb", buffering=0), os.fdopen(theirs[0], "rb")
        self._buffer, self._n, self._session = b"", 0, ""
        self.messages: list[str] = []
        self.requests: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        if dark:
            self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._n += 1
        message = {"id": self._n, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._n:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            block = self._in.read1(1 << 20)  # type: ignore[attr-defined]
            assert block, "Chromium ended"
            self._buffer += block
        line, self._buffer = self._buffer.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(line)
        method, parameters = answer.get("method"), answer.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Log.entryAdded":
            self.messages.append(parameters["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(parameters["exceptionDetails"])[:600])
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(json.dumps(parameters["args"])[:600])
        return answer

    def run(self, expression: str) -> Any:
        """Evaluate an expression of JavaScript and return its value."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> None:
        """Evaluate an expression until it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.run(f"Boolean({expression})"):
                return
            time.sleep(0.03)
        raise AssertionError(f"never true: {expression}; page: {self.run('document.body.innerText')[:500]!r}")

    def open(self, index: Path, address: str = "#/") -> None:
        """Open the explorer anew and wait until the view is there."""
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=index.resolve().as_uri() + address)
        self.wait("document.documentElement?.dataset.view")

    def go(self, address: str) -> None:
        """Change the address within the page and wait for its view."""
        self.run(f"delete document.documentElement.dataset.view; location.hash = {json.dumps(address)}; 1")
        self.wait("document.documentElement?.dataset.view")

    def press(self, *keys: str) -> None:
        """Press keys one after another, each given as the value of KeyboardEvent.key."""
        for key in keys:
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            code = CODES.get(key, 0)
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def screenshot(self, file: Path) -> None:
        """Write a picture of the window."""
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._session = ""
        try:
            self.send("Browser.close")
        except (AssertionError, OSError):
            self._process.kill()
        self._process.wait(30)
        self._out.close()
        self._in.close()
