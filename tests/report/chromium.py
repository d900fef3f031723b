"""A headless Chromium on a pipe: enough of its protocol to open a page, press keys, ask it things, take its figure."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60.0


class Chromium:
    """One browser with one tab. Errors on its console are kept."""

    def __init__(self):
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        assert program, f"the browser tests need one of {', '.join(NAMES)}; on Debian: apt install chromium"
        self.home = tempfile.TemporaryDirectory(prefix="demp-chromium-", ignore_cleanup_errors=True)
        (in_read, self._in), (self._out, out_write) = os.pipe(), os.pipe()

        def descriptors():  # Chromium reads from 3 and writes to 4
            low, high = os.dup(in_read), os.dup(out_write)
            os.dup2(low, 3)
            os.dup2(high, 4)

        command = [program, *FLAGS, f"--user-data-dir={self.home.name}", "about:blank"]
        self.process = subprocess.Popen(
            command, preexec_fn=descriptors, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(in_read)
        os.close(out_write)
        os.set_blocking(self._out, False)
        self._number, self._rest, self.events, self.errors = 0, b"", [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = None
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """One command and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if getattr(self, "session", None):
            message["sessionId"] = self.session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _next(self):
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            assert time.monotonic() < deadline, "the browser does not answer"
            try:
                self._rest += os.read(self._out, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self._hear(message)
        return message

    def _hear(self, message):
        self.events.append(message)
        parameters = message["params"]
        if message["method"] == "Runtime.exceptionThrown":
            self.errors.append(
                parameters["exceptionDetails"]["text"] + str(parameters["exceptionDetails"].get("exception"))
            )
        if message["method"] == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            self.errors.append(str(parameters["args"]))
        if message["method"] == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(parameters["entry"]["text"])

    def wait_for(self, method):
        """The next event of a kind, or one that has come since the last command was sent."""
        while True:
            found = [event for event in self.events if event["method"] == method]
            if found:
                self.events.remove(found[0])
                return found[0]["params"]
            self._next()

    def open(self, path, *, width=1280, height=900, dark=False):
        """Load a file at a size and in a colour scheme; nothing from before is remembered."""
        self.size(width, height)
        self.scheme(dark)
        self.events.clear()
        self.errors.clear()
        self.call("Page.navigate", url=Path(path).resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def size(self, width, height=900):
        """Of the window, in CSS pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def scheme(self, dark):
        """What the system prefers."""
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def ask(self, expression):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key, code=0, text=""):
        """One key."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def point_at(self, x, y):
        """Move the pointer."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def figure(self, file, *, whole=True):
        """A PNG of the page."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        more = {"captureBeyondViewport": True, "clip": clip} if whole else {}
        shot = self.call("Page.captureScreenshot", format="png", **more)
        Path(file).write_bytes(base64.b64decode(shot["data"]))

    def close(self):
        """End the browser."""
        self.process.terminate()
        self.process.wait(30)
        os.close(self._in)
        os.close(self._out)
        self.home.cleanup()
