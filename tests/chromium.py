"""Headless Chromium, spoken to through a pipe: JSON both ways, a zero byte between.  Debian's package `chromium`."""

import base64
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path

PIPE = 'exec "$@" 3<&{} 4>&{}'  # where Chromium reads, and where it writes
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--remote-debugging-pipe", "--disable-dev-shm-usage"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a page that asks another host does not get it
)


class Browser:
    """One tab."""

    def __init__(self, write, read):
        self.write, self.read, self.numbers, self.session, self.rest = write, read, count(1), None, b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def call(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while (answer := self.message()).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def message(self):
        while b"\0" not in self.rest:
            part = os.read(self.read, 1 << 16)
            assert part, "Chromium has ended"
            self.rest += part
        one, _, self.rest = self.rest.partition(b"\0")
        return json.loads(one)

    def open(self, url):
        assert "errorText" not in self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'", 60)

    def ask(self, expression):
        """What a JavaScript expression is worth in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression, seconds):
        end = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < end, f"after {seconds} s not yet: {expression}"
            time.sleep(0.1)

    def picture(self, path, width, height=900):
        how = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **how)
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def chromium(folder):
    """A Browser, with its profile in that folder."""
    program = shutil.which("chromium")
    assert program, "Chromium is not here; install Debian's package `chromium`."
    theirs_read, write = os.pipe()
    read, theirs_write = os.pipe()
    command = ["bash", "-c", PIPE.format(theirs_read, theirs_write), "bash", program, *FLAGS]
    command += [f"--user-data-dir={folder}", "about:blank"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, pass_fds=(theirs_read, theirs_write), stdout=quiet, stderr=quiet) as process:
        os.close(theirs_read)
        os.close(theirs_write)
        try:
            yield Browser(write, read)
        finally:
            process.terminate()
            os.close(write)
            os.close(read)
