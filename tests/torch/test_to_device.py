"""Copies to a device through pinned buffers, with a stand-in for CUDA that copies as late as a device may."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torch_files import assert_identical, raw, weights, write_shards
from weightcache.errors import LoadError
from weightcache.torch import iter_tensors
from weightcache.torch._to_device import PinnedCopies

torch = pytest.importorskip("torch")
from torch.overrides import TorchFunctionMode  # noqa: E402


class LateStream:
    """Runs what was queued only when something waits for it."""

    def __init__(self, *_: Any) -> None:
        self.queued: list[Any] = []
        self.waited_for: list[tuple[LateStream, int]] = []

    def wait_stream(self, other: LateStream) -> None:
        self.waited_for.append((other, len(other.queued)))

    def run(self, count: int) -> None:
        for number in range(count):
            if self.queued[number]:
                self.queued[number]()
                self.queued[number] = None


class LateCuda(TorchFunctionMode):
    """Stands for ``torch`` and ``torch.cuda``: tensors are real, and a copy that does not block is queued."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side, self.inside = LateStream(), LateStream(), None
        self.pinned = 0
        late = self

        class Event:
            def record(self, stream: LateStream) -> None:
                self.stream, self.count = stream, len(stream.queued)

            def synchronize(self) -> None:
                self.stream.run(self.count)

        @contextmanager
        def stream(which: LateStream) -> Any:
            late.inside = which
            yield
            late.inside = None

        self.cuda = SimpleNamespace(
            Event=Event, stream=stream, Stream=lambda _: self.side, current_stream=lambda _: self.main
        )
        self.uint8 = torch.uint8

    def empty(self, *shape: Any, pin_memory: bool = False, **options: Any) -> Any:
        self.pinned += pin_memory
        return torch.empty(*shape, **options)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.copy_ and kwargs.get("non_blocking"):
            assert self.inside is self.side
            self.side.queued.append(lambda: args[0].copy_(args[1]))
            return args[0]
        return function(*args, **kwargs)


@pytest.mark.parametrize("size", [8, 1000, 1 << 20])
def test_a_buffer_is_not_filled_again_before_the_device_has_its_bytes(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[LateStream] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: recorded.append(stream))
    tensors = weights(300) | {"transposed": torch.randn(7, 11).T}
    with LateCuda() as late:
        copies = PinnedCopies(late, torch.device("cpu"), size)
        copied = {name: copies.copy(tensor) for name, tensor in tensors.items()}
        # Each use on the current stream waits for all copies of its tensor.
        assert late.main.waited_for[-1] == (late.side, len(late.side.queued))
        assert len(late.side.waited_for) == len(late.main.waited_for) == len(tensors) - 1
        assert recorded == [late.side] * (len(tensors) - 1)
        copies.close()
    assert not any(late.side.queued)  # else the device would read memory that is free
    assert late.pinned == 2
    for name, tensor in tensors.items():
        assert (copied[name].dtype, copied[name].shape) == (tensor.dtype, tensor.shape)
        assert raw(copied[name]) == raw(tensor)


def test_the_flag_changes_nothing_on_the_cpu_and_needs_a_device(tmp_path: Path) -> None:
    expected = write_shards(tmp_path)
    assert_identical(dict(iter_tensors(tmp_path, pinned=True)), expected)
    if not torch.cuda.is_available():
        with pytest.raises(LoadError, match="cannot be loaded to cuda"):
            iter_tensors(tmp_path, device="cuda", pinned=True)


def test_iter_tensors_copies_with_it_and_waits_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, done = write_shards(tmp_path), []
    copies = SimpleNamespace(copy=lambda tensor: tensor.clone(), close=lambda: done.append(True))
    monkeypatch.setattr("weightcache.torch._load.checked_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr("weightcache.torch._state_dict.PinnedCopies", lambda *_: copies)
    found = {}
    for name, tensor in iter_tensors(tmp_path, device="cuda", pinned=True, names=lambda name: "empty" not in name):
        assert not done
        found[name] = tensor
    assert done == [True]
    assert {name: raw(tensor) for name, tensor in found.items()} == {
        name: raw(tensor) for name, tensor in expected.items() if "empty" not in name
    }
