"""What a server sends never reaches a terminal or a log as it is: control characters could rewrite what is there."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from origin import Origin
from support import blob, one
from weightcache import DownloadError, ensure

DATA = blob(500)
PAINT = "\x1b[2J\u009b31m\a\b\u202e".encode()  # colours in two spellings, a bell, backspace, from right to left
LENGTH = b"Content-Length: 500"


def head(status: bytes, *headers: bytes) -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + b"\r\n".join((*headers, b"Connection: close")) + b"\r\n\r\n"


PAINTED = json.dumps({"error": f"{PAINT.decode()} message"}).encode()
ANSWERS = {
    "a reason": head(b"404 Not " + PAINT + b"\x9b31mFound", b"Content-Length: 0"),
    "a message in JSON": head(b"404 X", b"Content-Length: %d" % len(PAINTED)) + PAINTED,
    "a message in XML": head(b"403 X", LENGTH) + (b"<Code>a" + PAINT + b"b</Code>").ljust(500),
    "a page": head(b"200 OK", b"Content-Type: text/html" + PAINT, LENGTH) + (b"<html>" + PAINT).ljust(500),
    "a range": head(b"206 P", b"Content-Range: bytes " + PAINT, LENGTH),
    "an encoding": head(b"200 OK", b"Content-Encoding: gzip" + PAINT, b"Content-Encoding: gzip", LENGTH),
    "a code of the Hub": head(b"403 X", b"X-Error-Code: Gated" + PAINT, b"X-Error-Message: " + PAINT, LENGTH),
    "a redirect to a path": head(b"302 F", b"Location: /" + PAINT, b"Content-Length: 0"),
    "a redirect to a folded line": head(b"302 F", b"Location: /\r\n x" + PAINT, b"Content-Length: 0"),
    "a redirect to ftp": head(b"302 F", b"Location: ftp://h/" + PAINT, b"Content-Length: 0"),
    "a redirect to hf": head(b"302 F", b"Location: hf://h/" + PAINT, b"Content-Length: 0"),
    "a redirect to a host": head(b"302 F", b"Location: http://h" + PAINT + b".invalid/", b"Content-Length: 0"),
    "a wait": head(b"503 X" + PAINT, b"Retry-After: " + PAINT, b"Content-Length: 0"),
    "no HTTP": PAINT + b"\r\n\r\n",
}
# What a redirect to such a path is requested as.
PATHS = [f"/{PAINT.decode()}", f"/ x{PAINT.decode()}"]


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_nothing_that_is_shown_has_control_characters(
    answer: bytes, origin: Origin, root: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    def always(exchange: Any) -> None:
        exchange.handler.wfile.write(answer)
        exchange.hang_up()

    caplog.set_level(logging.DEBUG, "weightcache")
    origin.put("/a", DATA, always=always)
    for path in PATHS:
        origin.files[path] = origin.files["/a"]
    with pytest.raises(DownloadError) as caught:
        ensure(one(DATA, origin.url("/a")), root=root)
    error, shown = caught.value, capsys.readouterr()
    logged = [record.getMessage() for record in caplog.records if record.name == "weightcache"]
    texts = [*error.args[0].split("\n"), error.hint, *(each.reason for each in error.attempts), *logged]
    texts += [*shown.out.split("\n"), *shown.err.replace("\r", "\n").split("\n")]
    assert [text for text in texts if not text.isprintable()] == []
    assert logged
