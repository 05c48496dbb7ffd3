"""What a seed chooses: how the Volume and the Dict behave, and which containers die, sleep or fail."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass
class Switches:
    """What a seed chose."""

    visibility: str = "whole"  # or "file": one by one, in any order
    open_writers: str = "exclude"  # or "partial", "include"
    reload_over: str = "commit"  # or "discard", "keep"
    skip_reload: bool = False  # a commit reloads afterwards, or not
    background: bool = True
    commit_fails: float = 0.0
    reload_fails: float = 0.0
    touched: bool = False  # a file that was written is committed, also with the same content
    opens: bool = False  # the app has files open now and then, so that a reload fails
    dict: str = "ok"  # or "flaky", "forget", "down", "slow"
    prune: bool = False
    kills: int = 0
    kill: str = "container"  # or "exit" (with a last commit), "process"
    sleeps: bool = False
    origin_fails: float = 0.0
    origin: str = "ok"  # or "down" or "stalls": for some containers
    block: float = 2.0  # seconds that a block of a download takes
    readers: bool = False  # some containers may not write
    clocks: str = "near"  # or "far"
    begin: str = "empty"  # or "truncated", "unreceipted", "stranger", "gap", "old" (a version that nobody declares)
    containers: int = 3
    processes: int = 1

    @classmethod
    def throw(cls, dice: random.Random) -> Switches:
        c = dice.choice
        return cls(
            visibility=c(["whole", "file"]),
            open_writers=c(["exclude", "partial", "include"]),
            reload_over=c(["commit", "discard", "keep"]),
            skip_reload=c([False, False, True]),
            background=c([False, True, True]),
            commit_fails=c([0, 0, 0.3]),
            reload_fails=c([0, 0, 0.2]),
            touched=c([False, True]),
            opens=c([False, False, True]),
            dict=c(["ok", "ok", "ok", "ok", "flaky", "forget", "down", "slow"]),
            prune=c([False, False, False, True]),
            kills=c([0, 0, 1, 1, 2]),
            kill=c(["container", "exit", "process"]),
            sleeps=c([False, False, True]),
            origin_fails=c([0, 0, 0, 0.1]),
            origin=c(["ok", "ok", "ok", "ok", "down", "stalls"]),
            block=c([2.0, 2.0, 15.0]),
            readers=c([False, False, False, True]),
            clocks=c(["near", "near", "near", "far"]),
            begin=c(["empty", "empty", "truncated", "unreceipted", "stranger", "gap", "old"]),
            containers=c([2, 3, 4, 5, 9, 16]),
            processes=c([1, 1, 2]),
        )

    @property
    def healthy(self) -> bool:
        """Whether the lease may be expected to spare every second download."""
        disturbed = self.commit_fails or self.reload_fails or self.opens or self.prune or self.dict != "ok"
        return not disturbed and self.origin != "stalls"
