"""The answers that the servers of the network campaign give, right and wrong ones."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from origin import redirect, status
from origin_exchange import PIECE, Exchange, Resource

STALL = 0.4  # seconds of `Settings.stall_timeout` where a server stalls on purpose
LONGEST_WAIT = 0.2  # seconds of a Retry-After that are waited for
GRACE = 0.05  # seconds that a request waits for its place at a server that serves few at once
TICK = 0.01  # seconds between two pieces of a slow answer
ENDLESS = 1 << 20  # bytes of an answer that is meant to have no end

Act = Callable[[Exchange, "Served"], None]


class Move(NamedTuple):
    """One wrong answer.

    Attributes:
        name: What it is, for the report.
        act: Gives it.
        cost: Seconds that a client must wait for it, or because of it.
        is_passing: Whether another try helps, so that a few of them are no reason to give a mirror up.
        stalls: Whether it ends with the client's timeout.
        progress: The share of what is requested that it gives. A client never gives up a mirror that makes progress.
    """

    name: str
    act: Act
    cost: float = 0.0
    is_passing: bool = False
    stalls: bool = False
    progress: float = 0.0


class Policy(NamedTuple):
    """How a server gives a right answer."""

    ranges: bool = True
    length: bool = True
    gzip: bool = False
    etag: str = "strong"  # or weak, none, changing
    total: bool = True  # whether Content-Range has the length of the file
    rate: float = 0.0  # bytes a second of each connection; 0 for as fast as it goes
    bursts: bool = False  # whether it sends nothing for a while and then 64 KiB at once, at that rate
    most: int = 100  # connections at once
    refusal: int = 503  # of one connection more
    delay: float = 0.0  # seconds before each head

    @property
    def resource(self) -> dict[str, Any]:
        return {"ranges": self.ranges, "length": self.length, "gzip": self.gzip}


GOOD = Policy()


class _Answer(Exchange):
    """A right answer, at the rate of its server. The last byte comes when it is due, and nothing is waited for then."""

    def __init__(self, exchange: Exchange, resource: Resource, served: Served) -> None:
        super().__init__(exchange.origin, exchange.handler, resource, exchange.request)
        self._served = served

    def body(self, data: bytes | memoryview) -> None:
        view, rate, began = memoryview(data), self._served.policy.rate, time.monotonic()
        size = PIECE if self._served.policy.bursts or not rate else int(rate * TICK)
        for first in range(0, len(view), size):
            piece = view[first : first + size]
            if rate:
                self._served.pause(max(0.0, began + (first + len(piece)) / rate - time.monotonic()))
            super().body(piece)


@dataclass
class Served:
    """One file at one mirror, while it is served."""

    data: bytes
    moves: list[Move]
    tail: Move | None  # for ever after those; ``None`` is the right answer
    policy: Policy
    elsewhere: str = ""  # a URL at which another server has the file
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    answers: int = 0
    serving: list[Exchange] = field(default_factory=list)  # in the order in which they came

    def __call__(self, exchange: Exchange) -> None:
        hops = int(exchange.request.path.rpartition("?hops=")[2] or 0) if "?hops=" in exchange.request.path else 0
        if hops:
            redirect(f"?hops={hops - 1}")(exchange)
            return
        with self.lock:
            move = self.moves.pop(0) if self.moves else self.tail
            self.answers += 1
            self.serving.append(exchange)
        try:
            self.pause(self.policy.delay)
            if move:
                move.act(exchange, self)
            elif self._has_room(exchange):
                self.right(exchange)
            else:
                status(self.policy.refusal, {"Retry-After": "0"} if self.policy.refusal == 503 else {})(exchange)
        finally:
            with self.lock:
                self.serving = [each for each in self.serving if each is not exchange]

    def _has_room(self, exchange: Exchange) -> bool:
        """Wait for a place, not longer than `GRACE`; whether there is one.

        The pauses of the client are hundreds of times shorter than in use. So is the time in which a server knows that
        an answer is whole, or that its client has gone: it would refuse all tries meanwhile.
        """
        ends = time.monotonic() + GRACE
        while True:
            with self.lock:
                self.serving = [each for each in self.serving if each is exchange or not _has_gone(each)]
                if self.serving.index(exchange) < self.policy.most:
                    return True
            if time.monotonic() > ends:
                return False
            self.pause(0.002)

    def pause(self, seconds: float) -> None:
        """Wait; a run that is over waits no longer."""
        if seconds and self.over.wait(seconds):
            raise ConnectionError("the run is over")

    def right(self, exchange: Exchange, data: bytes | None = None) -> None:
        """Give the right answer, or that of another file."""
        policy, found = self.policy, self.data if data is None else data
        etag = {"none": None, "weak": 'W/"a"', "changing": f'"{self.answers}"'}.get(policy.etag, '"a"')
        resource = Resource(found, etag=etag, **policy.resource)
        answer = _Answer(exchange, resource, self)
        wanted = None if policy.total else answer.wanted()
        if wanted is None or not found or wanted[0] >= len(found):
            answer.good()
        else:
            part(answer, found, wanted[0], wanted[1], total="*")


def _has_gone(exchange: Exchange) -> bool:
    try:
        return exchange.handler.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def part(
    exchange: Exchange, data: bytes, first: int, last: int, *, total: object = None, sent: int | None = None
) -> None:
    """Answer 206 with a part of ``data``; ``sent`` bytes of it if they are not all."""
    whole = len(data) if total is None else total
    exchange.head(206, {"Content-Range": f"bytes {first}-{last}/{whole}", "Content-Length": last + 1 - first})
    exchange.body(data[first : last + 1][:sent])


def range_of(exchange: Exchange, data: bytes) -> tuple[int, int]:
    """The part that is requested: all of it without a Range."""
    first, _, last = exchange.request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
    return int(first), min(int(last or len(data) - 1), len(data) - 1)


# Wrong answers. Each function returns one, with what is random of it drawn. ------------------------------------------


def refused(random: Random) -> Move:
    code = random.choice([400, 401, 403, 404, 410, 416, 418, 451, 204, 304, 206, 300, 505])
    page = random.choice([b"", b"<html>no</html>", b'{"error":"no such file"}', b"{" * 5000, random.randbytes(9000)])
    return Move(
        f"status {code}", lambda exchange, served: status(code, body=page if code not in (204, 304) else b"")(exchange)
    )


def busy(random: Random) -> Move:
    code = random.choice([429, 503, 500, 502, 504, 408, 520, 202])
    name, value, wait = random.choice([
        ("Retry-After", "0", 0.0),
        ("Retry-After", f"{LONGEST_WAIT / 2}", LONGEST_WAIT / 2),
        ("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Retry-After", "soon", 0.0),
        ("Retry-After", "-5", 0.0),
        ("Retry-After", "Fri, 99 Foo 99999 99:99:99 GMT", 0.0),
        ("RateLimit", '"a";r=0;t=0', 0.0),
        ("X-Nothing", "", 0.0),
    ])  # fmt: skip
    return Move(
        f"status {code} with {name}: {value}",
        lambda exchange, served: status(code, {name: value}, b"busy")(exchange),
        wait,
        is_passing=True,
    )


def busy_for_long(random: Random) -> Move:
    value = random.choice(["3600", "9" * 300, "Fri, 31 Dec 9999 23:59:59 GMT"])
    return Move(
        f"429 with Retry-After: {value:.40}", lambda exchange, served: status(429, {"Retry-After": value})(exchange)
    )


def broken_off(random: Random) -> Move:
    share, reset, chunked = random.random(), random.random() < 0.5, random.random() < 0.2

    def act(exchange: Exchange, served: Served) -> None:
        first, last = range_of(exchange, served.data)
        if first <= last and share > 0.1:
            count = int(share * (last + 1 - first))
            if chunked:
                exchange.head(200, {"Transfer-Encoding": "chunked"})
                exchange.handler.wfile.write(b"%x\r\n" % len(served.data))
                exchange.body(served.data[:count])
            elif "Range" in exchange.request.headers and served.policy.ranges:
                part(exchange, served.data, first, last, sent=count)
            else:
                exchange.head(200, {"Content-Length": len(served.data)})
                exchange.body(served.data[:count])
        exchange.hang_up(reset=reset)

    given = share if share > 0.1 else 0.0
    name = f"{'a reset' if reset else 'an end'} after {given:.2f}{' of chunks' if chunked else ''}"
    return Move(name, act, is_passing=not chunked, progress=given)


def stalled(random: Random) -> Move:
    share = random.choice([-1.0, 0.0, 0.5])

    def act(exchange: Exchange, served: Served) -> None:
        first, last = range_of(exchange, served.data)
        if share >= 0 and first <= last:
            part(exchange, served.data, first, last, sent=int(share * (last + 1 - first)))
        served.over.wait()
        exchange.hang_up()

    name = f"a stall {'before the head' if share < 0 else f'after {share}'}"
    return Move(name, act, STALL, is_passing=True, stalls=True)


def dripping(random: Random, kind: str = "") -> Move:
    """A server that never stops sending, and never sends what is wanted: no timeout of a socket ends it."""
    kind = kind or random.choice(["head", "interim", "body", "chunk size", "redirect", "refusal"])
    heads = {
        "head": b"HTTP/1.1 200 OK\r\n", "interim": b"",
        "chunk size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "body": b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n",
        "redirect": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 60000\r\n\r\n",
        "refusal": b"HTTP/1.1 503 Busy\r\nContent-Length: 60000\r\n\r\n",
    }  # fmt: skip
    drops = {"interim": b"HTTP/1.1 102 Processing\r\n\r\n", "chunk size": b"0", "head": b"A"}

    def act(exchange: Exchange, served: Served) -> None:
        head = heads[kind]
        exchange.handler.wfile.write(head % len(served.data) if kind == "body" else head)
        while not served.over.wait(0.02):
            exchange.handler.wfile.write(drops.get(kind, b"x"))
        exchange.hang_up()

    return Move(f"an endless {kind}", act, 2 * STALL if kind == "redirect" else STALL, stalls=True)


def wrong_range(random: Random) -> Move:
    kind = random.randrange(9)

    def act(exchange: Exchange, served: Served) -> None:
        data = served.data
        first, last = range_of(exchange, data)
        size = len(data)
        value = (
            f"bytes {first + 1}-{last + 1}/{size}", f"bytes {first}-{last}/{size + 1}",
            f"bytes {first}-{last + 5}/{size}", f"bytes 0-{last}/{size}", f"items {first}-{last}/{size}",
            f"bytes {'9' * 400}-{'9' * 401}/*",
            f"bytes {last}-{first}/{size}", "", f"bytes {first}-{first}/{size}",
        )[kind]  # fmt: skip
        body = data[first : last + 1]
        exchange.head(206, {"Content-Range": value, "Content-Length": len(body)})
        exchange.body(body)

    return Move(f"206 with a wrong Content-Range ({kind})", act)


def wrong_length(random: Random) -> Move:
    more, chunked = random.choice([-1, 1, 1000, ENDLESS]), random.random() < 0.5

    def act(exchange: Exchange, served: Served) -> None:
        data = served.data[:more] if more < 0 else served.data + bytes(more)
        if chunked:
            exchange.chunked(data, {})
        else:
            exchange.head(200, {"Content-Length": len(data)})
            exchange.body(data)

    return Move(f"a file of {more} bytes more{', chunked' if chunked else ''}", act)


def junk_after_body(random: Random) -> Move:
    junk = random.randbytes(100)

    def act(exchange: Exchange, served: Served) -> None:
        served.right(exchange)
        exchange.handler.wfile.write(junk)

    return Move("junk after the right answer", act, is_passing=True)


def wrong_bytes(random: Random) -> Move:
    at = random.random()

    def act(exchange: Exchange, served: Served) -> None:
        data = bytearray(served.data or b"x")
        data[int(at * len(data))] ^= 1
        served.right(exchange, bytes(data))

    return Move(f"a wrong byte at {at:.2f}", act)


def whole(random: Random) -> Move:
    def act(exchange: Exchange, served: Served) -> None:
        exchange.head(200, {"Content-Length": len(served.data)})
        exchange.body(served.data)

    return Move("200 to a range", act, is_passing=True)


PASSING_REDIRECTS = ("itself", "loop", "5 hops", "elsewhere", "relative")


def until_the_end(random: Random) -> Move:
    """A response that ends with its connection, as those of HTTP/1.0 do."""
    share = random.choice([1.0, 1.0, random.random()])

    def act(exchange: Exchange, served: Served) -> None:
        exchange.head(200, {"Connection": "close"})
        exchange.body(served.data[: int(share * len(served.data))])
        exchange.hang_up()

    return Move(f"a body of {share:.2f} without a length", act, is_passing=share == 1.0)


def redirected(random: Random) -> Move:
    kind = random.choice(
        [
            "itself",
            "loop",
            "5 hops",
            "20 hops",
            "elsewhere",
            "relative",
            "file",
            "ftp",
            "broken",
            "none",
            "latin",
            "private",
        ]
    )

    def act(exchange: Exchange, served: Served) -> None:
        path = exchange.request.path
        target = {
            "itself": path, "loop": f"{path.partition('?')[0]}?{served.answers}", "elsewhere": served.elsewhere,
            "relative": "./" + path.rpartition("/")[2], "file": "file:///etc/passwd", "ftp": "ftp://a/b",
            "5 hops": "?hops=4", "20 hops": "?hops=19", "broken": "http://[", "latin": "/\xff\xfe", "private": "http://127.0.0.1:1/",
        }  # fmt: skip
        code = 307 if kind == "elsewhere" else 302
        (status(302) if kind == "none" else redirect(target[kind], code))(exchange)

    return Move(f"a redirect ({kind})", act, is_passing=kind in PASSING_REDIRECTS)


def encoded(random: Random) -> Move:
    kind = random.choice(["gzip", "label", "br", "bomb", "torn", "deflate"])

    def act(exchange: Exchange, served: Served) -> None:
        body = {
            "gzip": gzip.compress(served.data, 1), "bomb": gzip.compress(bytes(8 << 20), 1),
            "torn": gzip.compress(served.data, 1)[: len(served.data) // 2], "br": b"\x0b\x02\x80hello\x03",
        }.get(kind, served.data)  # fmt: skip
        named = kind if kind in ("br", "deflate") else "gzip"
        exchange.head(200, {"Content-Encoding": named, "Content-Length": len(body)})
        exchange.body(body)

    return Move(f"an encoding ({kind})", act)


def raw(random: Random) -> Move:
    kind = random.choice(["noise", "line", "headers", "chunk", "interim", "http0.9", "two lengths"])
    noise = random.randbytes(300)

    def act(exchange: Exchange, served: Served) -> None:
        data = {
            "noise": noise, "line": b"HTTP/1.1 200 " + b"a" * 100_000, "http0.9": b"hello\r\n",
            "headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n",
            "chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n",
            "interim": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 200,
            "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        }  # fmt: skip
        exchange.handler.wfile.write(data[kind])
        exchange.hang_up()

    return Move(f"no HTTP ({kind})", act)


MOVES = (
    refused, busy, busy, busy_for_long, broken_off, broken_off, broken_off, wrong_range, wrong_range, wrong_length,
    until_the_end, junk_after_body, wrong_bytes, whole, redirected, redirected, encoded, raw,
)  # fmt: skip
