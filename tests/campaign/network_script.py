"""What the servers of the network campaign do: a script of right and wrong answers for each file of each mirror.

Everything is drawn from a random generator, so that the same seed and number give the same scripts. An answer that
makes the client wait has a cost in seconds, from which `Plan.best` and `Plan.budget` are computed.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from origin import redirect, status
from origin_exchange import Exchange, Resource

TRIES = 3
STALL = 0.4  # seconds of `Settings.stall_timeout` where a server stalls on purpose
CALM = 5.0  # and elsewhere: a busy machine must not look like a server that stalls
OWN = 0.5  # seconds that a run may take without any wait: processes, threads, files
BACKOFF = 0.02  # seconds of the longest pause after a failure
REFUSAL = 0.5  # seconds for which a mirror that delivered may refuse: the server may not know that a connection ended
LONGEST_WAIT = 0.2  # seconds of a Retry-After that are waited for
LARGEST = 200_000  # bytes of a file
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
    """

    name: str
    act: Act
    cost: float = 0.0
    is_passing: bool = False
    stalls: bool = False


class Policy(NamedTuple):
    """How a server gives a right answer."""

    ranges: bool = True
    length: bool = True
    gzip: bool = False
    etag: str = "strong"  # or weak, none, changing
    total: bool = True  # whether Content-Range has the length of the file
    rate: float = 0.0  # bytes a second of each connection; 0 for as fast as it goes
    most: int = 100  # connections at once
    refusal: int = 503  # of one connection more
    delay: float = 0.0  # seconds before each head

    @property
    def resource(self) -> dict[str, Any]:
        return {"ranges": self.ranges, "length": self.length, "gzip": self.gzip, "rate": self.rate}


GOOD = Policy()


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
    busy: int = 0

    def __call__(self, exchange: Exchange) -> None:
        hops = int(exchange.request.path.rpartition("?hops=")[2] or 0) if "?hops=" in exchange.request.path else 0
        if hops:
            redirect(f"?hops={hops - 1}")(exchange)
            return
        with self.lock:
            move = self.moves.pop(0) if self.moves else self.tail
            self.answers += 1
            self.busy += 1
            crowded = self.busy > self.policy.most
        try:
            self.pause(self.policy.delay)
            if move:
                move.act(exchange, self)
            elif crowded:
                status(self.policy.refusal, {"Retry-After": "0"} if self.policy.refusal == 503 else {})(exchange)
            else:
                self.right(exchange)
        finally:
            with self.lock:
                self.busy -= 1

    def pause(self, seconds: float) -> None:
        """Wait; a run that is over waits no longer."""
        if seconds and self.over.wait(seconds):
            raise ConnectionError("the run is over")

    def right(self, exchange: Exchange, data: bytes | None = None) -> None:
        """Give the right answer, or that of another file."""
        policy, found = self.policy, self.data if data is None else data
        etag = {"none": None, "weak": 'W/"a"', "changing": f'"{self.answers}"'}.get(policy.etag, '"a"')
        resource = Resource(found, etag=etag, **policy.resource)
        answer = Exchange(exchange.origin, exchange.handler, resource, exchange.request)
        wanted = None if policy.total else answer.wanted()
        if wanted is None or not found or wanted[0] >= len(found):
            answer.good()
        else:
            part(answer, found, wanted[0], wanted[1], total="*")


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

    kind = "a reset" if reset else "an end"
    return Move(
        f"{kind} after {share if share > 0.1 else 0:.2f}{' of chunks' if chunked else ''}", act, is_passing=not chunked
    )


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


# Plans ----------------------------------------------------------------------------------------------------------------


class Script(NamedTuple):
    """What one mirror does for one file."""

    moves: tuple[Move, ...]
    tail: Move | None
    policy: Policy

    @classmethod
    def draw(cls, random: Random, *, may_stall: bool) -> Script:
        kinds = (*MOVES, stalled, dripping, dripping) if may_stall else MOVES
        moves = [random.choice(kinds)(random) for _ in range(random.choice([0, 1, 1, 2, 3, 5]))]
        # A stall costs a timeout, so there is at most one; one for ever would cost as many as there are tries.
        first = next((move for move in moves if move.stalls), None)
        moves = [move for move in moves if not move.stalls or move is first]
        tail = random.choice(MOVES)(random) if random.random() < 0.3 else None
        policy = Policy(
            ranges=random.random() < 0.8,
            length=random.random() < 0.85,
            gzip=random.random() < 0.05,
            etag=random.choice(["strong", "strong", "weak", "none", "changing"]),
            total=random.random() < 0.9,
            rate=random.choice([0.0, 0.0, 0.0, 2e6, 5e5]),
            most=random.choice([100, 100, 1, 2]),
            refusal=random.choice([503, 429, 403]),
            delay=random.choice([0.0, 0.0, 0.005, 0.02]),
        )
        return cls(tuple(moves), tail, policy)

    @property
    def delivers(self) -> bool:
        """Whether a client that tries again must get the file, whatever its order of requests."""
        passing = sum(1 for move in self.moves if not move.name.startswith("200"))
        passing += any(
            move.stalls for move in self.moves
        )  # with the short timeout, a busy machine may look like a stall
        return self.tail is None and all(move.is_passing for move in self.moves) and passing < TRIES

    def seconds(self, size: int, connections: int) -> float:
        """What a client must wait at the least until it has the file, with answers one after another."""
        policy = self.policy
        at_once = min(policy.most, connections) if policy.ranges else 1
        transfer = size / policy.rate / at_once if policy.rate else 0.0
        return sum(move.cost for move in self.moves) + (len(self.moves) + 1) * policy.delay + transfer


class Plan(NamedTuple):
    """One run: files, and for each mirror what it does for each of them."""

    files: dict[str, bytes]
    declared: bool  # whether sizes are
    mirrors: tuple[dict[str, Script], ...]
    connections: int
    patience: float
    auth: bool

    @classmethod
    def draw(cls, seed: int, number: int) -> Plan:
        random = Random(f"{seed}/{number}")
        count = random.choice([1, 1, 1, 2])
        sizes = [random.choice([0, 1, 100, 8192, random.randrange(LARGEST), LARGEST]) for _ in range(count)]
        files = {f"weights-{each}.bin": random.randbytes(size) for each, size in enumerate(sizes)}
        may_stall = random.random() < 0.05
        mirrors = tuple(
            {name: Script.draw(random, may_stall=may_stall) for name in files} for _ in range(random.choice([1, 1, 2]))
        )
        return cls(
            files,
            random.random() < 0.8,
            mirrors,
            random.choice([1, 4]),
            random.choice([0.0, 0.1]),
            random.random() < 0.3,
        )

    @property
    def stalls(self) -> bool:
        return any(move.stalls for mirror in self.mirrors for script in mirror.values() for move in script.moves)

    @property
    def delivers(self) -> bool:
        """Whether the run must succeed: for each file there is a mirror that must give it."""
        return all(any(mirror[name].delivers for mirror in self.mirrors) for name in self.files)

    @property
    def best(self) -> float:
        """Seconds that a client needs at the least that knows which mirror is the best one for each file."""
        return sum(
            min(mirror[name].seconds(len(data), self.connections) for mirror in self.mirrors)
            for name, data in self.files.items()
        )

    @property
    def requests(self) -> int:
        """The most requests that a run may make: see docs/reliability.md."""
        total = 0
        for name, data in self.files.items():
            for mirror in self.mirrors:
                script = mirror[name]
                total += len(script.moves) + (TRIES + 2 + -(-len(data) // PART)) * self.connections
                total += round(REFUSAL / BACKOFF * 4)  # while it may be refused, with pauses of half of BACKOFF
        return total * (1 + MAX_REDIRECTS if self.redirects else 1)

    @property
    def redirects(self) -> bool:
        moves = [move for mirror in self.mirrors for script in mirror.values() for move in (*script.moves, script.tail)]
        return any(move and "redirect" in move.name for move in moves)

    def budget(self, requests: int) -> float:
        """Seconds that a run of so many requests may take: see docs/reliability.md."""
        total = 0.0
        for name, data in self.files.items():
            for mirror in self.mirrors:
                script = mirror[name]
                policy, tail = script.policy, script.tail.cost if script.tail else 0.0
                total += 3 * len(data) / policy.rate if policy.rate else 0.0
                total += sum(move.cost for move in script.moves) + TRIES * tail + self.patience
        delay = max(script.policy.delay for mirror in self.mirrors for script in mirror.values())
        return OWN + total + requests * (BACKOFF + delay)

    def __str__(self) -> str:
        lines = [f"{len(self.files)} file(s), sizes {[len(data) for data in self.files.values()]}"]
        lines[0] += f"{'' if self.declared else ' not declared'}, {self.connections} connection(s)"
        for number, mirror in enumerate(self.mirrors):
            for name, script in mirror.items():
                moves = "; ".join(move.name for move in script.moves) or "-"
                tail = script.tail.name if script.tail else "right"
                lines.append(f"  mirror {number} {name}: {moves}; then {tail}; {script.policy}")
        return "\n".join(lines)


BLOCK = 8 << 10
PART = 8 * BLOCK
MAX_REDIRECTS = 10
