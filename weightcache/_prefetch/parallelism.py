"""How many reads run at once. A pool asks before each read, and reports each read that has ended.

One stream of a network volume is slow, so many are needed. Bytes that are cached come at the speed of memory. There,
more streams take CPU time, and under gVisor they are slower. Nothing reveals beforehand where bytes come from, so the
reads themselves decide. ``docs/decisions/0031-reading-that-adapts.md`` gives the reasons.

The caller passes every time, and holds its own lock around every call.
"""

from __future__ import annotations

TYPE_CHECKING = False  # a type checker takes it for true; the top of a module need not import typing's ABCs
if TYPE_CHECKING:
    Read = tuple[float, int, float]  # when it began, how many could run then, since when it could have begun

MOST = 16  # reads at once; more gained nothing anywhere

# Seconds that a read is under way, and how many reads may run then. A cached chunk takes 2 to 5 ms, or as long as the
# interpreter's lock is held elsewhere, which is 5 ms; and longer into new memory (see `add_page_cost`). To wait for the
# first chunk of a slow volume would cost 70 ms.
RAMP = ((0.006, 2), (0.009, 4), (0.0135, 8), (0.020, MOST))
STALL = 3.0  # a read that takes so many times what it should shows that the storage has changed

COUNTED_BYTES = 1 << 20  # a smaller read measures latency, not a rate
WINDOW = 3  # reads at least that a rate is measured on, or half as many as run at once
ALMOST = 0.9  # of a rate: what fewer reads must keep
MORE = 1.1  # of a rate: what more reads must gain
ALONE = 1.1  # one read is enough if all together are no faster than so many times the fastest one
MARGIN = 2.0  # reads for each that would fill the line, if all were as fast as the fastest one
INDEPENDENT = 0.7  # part of the rate of the fastest read that all keep while the line is not full
CHANGED = 1.5  # a rate that differs by this factor is that of another storage
WINDOW_SECONDS = 0.012  # of a rate at least: a thread takes up to 5 ms to begin, which is as long as two cached reads
IDLE = 4.0  # times the seconds of a read count at most that passed before it began: a pause does not make it slow
PATIENCE = 16  # windows until half as many reads are tried without another reason; doubled each time it fails
ALONE_PATIENCE = 4  # windows until two are tried again where one was best: that one is wrong costs most


class Parallelism:
    """Decides how many reads may run at once, between two bounds.

    Args:
        least: How many may always run.
        most: How many may run at most. With ``least == most`` the number is fixed.
    """

    def __init__(self, least: int = 1, most: int = MOST) -> None:
        self._least, self.most = least, most
        self._level = least
        self._running: list[Read] = []  # the oldest first
        self._active = 0  # reads that have not ended, also those that have arrived
        # Since when each read that could run besides does not; infinity for one that could not run before: a thread
        # takes as long to begin as some cached reads.
        self._idle = [float("inf")] * least
        self._grown = float("-inf")  # when the age of a read last allowed more
        self._share = 0.0  # seconds of a read, lately, divided by how many could run
        self._page_cost = 0.0
        self._forget()
        self._start_window(0.0)

    def _forget(self) -> None:
        """Forget what was learned: the storage has changed."""
        self._fastest = 0.0  # bytes a second of the fastest single read
        self._settled = 0.0  # bytes a second of all reads together, lately
        self._floor, self._ceiling = self._least, self.most  # fewer and more were tried, and were slower
        self._has_changed = False  # whether the last rate differed from what was measured before
        self._windows, self._patience = 0, PATIENCE
        self._trial: tuple[int, float] | None = None  # the number to return to, and its rate

    def add_page_cost(self, seconds: float) -> None:
        """Note that a read takes so much longer than from the same storage into memory that has its pages."""
        self._page_cost = seconds

    def limit(self, now: float) -> int:
        """Return how many reads may run now."""
        due, level = self._growth()
        if now > due:  # whatever has not come by now is slow
            self._forget()
            self._share, self._grown = 0.0, now
            self._set_level(level, now)
        return self._level

    def patience(self, now: float) -> float | None:
        """Return after how many seconds `limit` may be higher though no read has ended; ``None`` if never."""
        due, _ = self._growth()
        return None if due == float("inf") else max(0.0, due - now)

    def began(self, now: float) -> Read:
        """Note that a read begins, and return what `ended` takes."""
        read = (now, self._level, self._idle.pop(0) if self._idle else now)
        self._running.append(read)
        self._active += 1
        return read

    def arrived(self, read: Read) -> None:
        """Note that the bytes of a read are here, though the caller is not done with them: it is slow no longer.

        Optional. The rate includes what the caller does until `ended`.
        """
        self._running.remove(read)

    def ended(self, read: Read, now: float, count: int) -> None:
        """Note that a read has ended.

        Args:
            read: What `began` returned.
            now: The time.
            count: Bytes that were read; 0 for a read that failed.
        """
        if read in self._running:
            self._running.remove(read)
        self._active -= 1
        if self._active + len(self._idle) < self._level:
            self._idle.append(now)
        began, level, since = read
        seconds = now - began
        self._share = 0.75 * self._share + 0.25 * seconds / level if self._share else seconds / level
        if count < COUNTED_BYTES or seconds <= 0:
            return
        self._fastest = max(self._fastest, count / seconds)
        if began >= self._window_began:  # before that, another number ran
            self._count += 1
            self._bytes += count
            # With the time before, in which its thread waited for a processor or for the interpreter's lock: without
            # that, reads that the processor limits would seem the faster, the more of them run.
            idle = max(0.0, began - max(since, self._window_began))
            self._seconds += seconds + min(idle, IDLE * seconds)
            # The very first read is enough: were two no faster, the trial would show it.
            whole = self._count >= max(WINDOW, self._level // 2) and now - self._window_began >= WINDOW_SECONDS
            if whole or not self._settled:
                # Not bytes between two moments: a window so short would depend on which reads end just inside it.
                self._measured(self._level * self._bytes / self._seconds, now)

    # How it decides.

    def _growth(self) -> tuple[float, int]:
        """Return when the age of the oldest read allows more reads, and how many.

        One step at a time: a thread that asks late, because others hold the processor, says nothing about the storage.
        """
        before = 0.0
        for after, level in RAMP:
            if self._running and self._level < min(level, self.most):
                # Even if all shared one line, no read would take so long on the storage as it was.
                slow = max(after + self._page_cost, STALL * self._share * self._level)
                return max(self._running[0][0] + slow, self._grown + after - before), level
            before = after
        return float("inf"), self._level

    def _measured(self, rate: float, now: float) -> None:
        """Take in the rate of all reads together, and choose the next number."""
        level, trial, self._trial = self._level, self._trial, None
        self._start_window(now)
        self._windows += 1
        if trial is not None:
            before, reference = trial
            if level < before and rate < ALMOST * reference:
                self._floor, self._patience = before, 2 * self._patience
                self._set_level(before, now)
                return
            if level > before and rate < MORE * reference:
                self._ceiling = before
                self._set_level(before, now)
                return
            # Not the rate of fewer reads alone, or one trial after another could lose a tenth.
            self._settled = max(rate, reference)
            if level < before and rate >= reference:
                self._windows = self._patience  # fewer are no slower: try half of them next
        elif self._settled and not self._settled / CHANGED < rate < self._settled * CHANGED:
            self._has_changed = not self._has_changed
            if self._has_changed:
                return  # unless the next rate differs too, it was another process that took the processor
            self._forget()
            self._windows = self._patience  # try half next: how fast one read is alone is not known
            self._settled = rate
            return
        else:
            self._has_changed = False
            self._settled = 0.75 * self._settled + 0.25 * rate if self._settled else rate
        wanted = max(self._wanted(rate), self._floor)
        if wanted != level:
            self._set_level(wanted, now)
            self._trial = (level, self._settled)

    def _wanted(self, rate: float) -> int:
        """Return the number to try next, from what all reads reach together and what the fastest one reaches."""
        level = self._level
        if self._windows >= (self._patience if level > 1 else ALONE_PATIENCE):
            self._windows, self._floor, self._ceiling = 0, self._least, self.most
            return max(1, level // 2)
        enough = 1.0 if rate < ALONE * self._fastest else MARGIN * rate / self._fastest
        if enough <= level - 1:
            return max(int(-(-enough // 1)), level // 2)
        if rate >= INDEPENDENT * level * self._fastest:
            return min(2 * level, self._ceiling)
        return level

    def _set_level(self, level: int, now: float) -> None:
        self._level = max(self._least, min(level, self.most))
        idle = max(0, self._level - self._active)
        self._idle = (self._idle + [float("inf")] * idle)[:idle]
        self._start_window(now)

    def _start_window(self, now: float) -> None:
        self._window_began, self._count, self._bytes, self._seconds = now, 0, 0, 0.0
