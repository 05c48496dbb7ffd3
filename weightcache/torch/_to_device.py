"""Copy tensors to a CUDA device through pinned memory, while the caller reads the next one. Not run on a GPU."""

from __future__ import annotations

from typing import Any

BUFFER = 32 << 20  # bytes of each of the two buffers; pinned memory cannot be swapped out, so there is little of it


class PinnedCopies:
    """Copies tensors through two pinned buffers: one is filled while the device takes the bytes of the other.

    A copy from ordinary memory blocks the caller until it is complete, so nothing is read meanwhile.
    """

    def __init__(self, torch: Any, device: Any, size: int = BUFFER) -> None:
        self._torch, self._device, self._size = torch, device, size
        self._stream = torch.cuda.Stream(device)
        self._buffers = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._taken: list[Any] = [None, None]  # for each buffer, the event after which the device has its bytes
        self._next = 0

    def copy(self, tensor: Any) -> Any:
        """Return a tensor on the device; what runs on its current stream from now on sees the values."""
        torch = self._torch
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
        if not tensor.numel():
            return target
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)  # work that is queued there may still use this memory for another tensor
        source = tensor.contiguous().reshape(-1).view(torch.uint8)
        flat = target.reshape(-1).view(torch.uint8)
        for start in range(0, source.numel(), self._size):
            self._send(flat[start : start + self._size], source[start : start + self._size])
        current.wait_stream(self._stream)
        target.record_stream(self._stream)  # else its memory could be given away before the copy, if it is dropped
        return target

    def _send(self, target: Any, source: Any) -> None:
        turn, self._next = self._next, 1 - self._next
        if self._taken[turn] is not None:
            self._taken[turn].synchronize()  # before the buffer is filled again
        staged = self._buffers[turn][: source.numel()]
        staged.copy_(source)
        with self._torch.cuda.stream(self._stream):
            target.copy_(staged, non_blocking=True)
            event = self._torch.cuda.Event()
            event.record(self._stream)
        self._taken[turn] = event

    def close(self) -> None:
        """Wait until the device has all bytes, and free the buffers."""
        for event in self._taken:
            if event is not None:
                event.synchronize()
        self._taken, self._buffers = [None, None], []
