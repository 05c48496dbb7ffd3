"""The work on one photo, in a thread, when it is its turn, for as long as somebody waits for it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from starlette.responses import Response

from . import answers, errors
from .detection import CancelledError
from .errors import ServiceError
from .labels import PromptsError
from .photo import PhotoError, open_photo

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from starlette.requests import Request

    from .pipeline import Options
    from .startup import Backend

_log = logging.getLogger(__name__)


@dataclass
class Job:
    """A photo, and what is to be done with it.

    Attributes:
        backend: The models.
        image: The file that was sent.
        options: What the request asks for.
        max_pixels: Of the photo.
        max_answer: Bytes of all crops.
        hung_up: Set when nobody waits for it any more.
    """

    backend: Backend
    image: BinaryIO
    options: Options
    max_pixels: int
    max_answer: int
    hung_up: threading.Event = field(default_factory=threading.Event)
    _milliseconds: dict[str, float] = field(default_factory=dict)
    _marked: float = field(default_factory=time.perf_counter)

    def detect(self) -> Response:
        """Tell where the garments are."""
        photo = self._open()
        found = self.backend.pipeline.detect(photo, self.options, cancelled=self.hung_up.is_set)
        self._mark("models")
        detections = [answers.of_detection(each) for each in found]
        answer = answers.DetectAnswer(**self._head(photo), detections=detections)
        return Response(answers.to_json(answer), media_type=answers.JSON)

    def crop(self, media_type: str) -> Response:
        """Cut the garments out, and answer as JSON or zip."""
        photo = self._open()
        garments = self.backend.pipeline.crop(photo, self.options, cancelled=self.hung_up.is_set)
        self._mark("models")
        pictures = answers.pngs(garments, max_bytes=self.max_answer, check=self._check)
        self._mark("encoding")
        answer = answers.Answer(**self._head(photo))
        facts = [answers.of_garment(each) for each in garments]
        if media_type == answers.JSON:
            return Response(answers.crops_as_json(answer, facts, pictures), media_type=answers.JSON)
        saved = {"Content-Disposition": 'attachment; filename="garments.zip"'}
        return Response(answers.crops_as_zip(answer, facts, pictures), media_type=answers.ZIP, headers=saved)

    def _open(self) -> Any:
        self._mark("waiting")
        self._check()
        photo = open_photo(self.image.read(), max_pixels=self.max_pixels)
        self._mark("decoding")
        return photo

    def _check(self) -> None:
        if self.hung_up.is_set():
            raise CancelledError

    def _mark(self, phase: str) -> None:
        """Say what the time since the last mark was."""
        now = time.perf_counter()
        self._milliseconds[phase], self._marked = round(1000 * (now - self._marked), 1), now

    def _head(self, photo: Any) -> dict[str, Any]:
        return {
            "image": answers.of_photo(photo),
            "model": answers.ModelAnswer(stand_ins=self.backend.stand_ins, weights=dict(self.backend.weights)),
            "timings_ms": answers.Timings(**self._milliseconds),
        }


class Workers:
    """So many threads, and jobs that wait for one in the order in which they came."""

    def __init__(self, count: int) -> None:
        self._free = anyio.CapacityLimiter(count)

    async def run(self, request: Request, job: Job, work: Callable[[], Response]) -> Response:
        """Do the work, unless the client hangs up.

        While the job waits it then leaves the queue at once; later it stops before its next step.

        Raises:
            ServiceError: It cannot be done.
        """
        with anyio.CancelScope() as scope:
            watcher = asyncio.create_task(_watch(request, job, scope))
            try:
                # The scope ends a wait for a thread; a thread itself is waited for, and so is never one too many.
                return await anyio.to_thread.run_sync(_told, work, limiter=self._free)
            except CancelledError:
                _log.info("a client hung up: its work is stopped")
            finally:
                watcher.cancel()
                job.hung_up.set()
        return Response(status_code=499)  # which nobody reads


async def _watch(request: Request, job: Job, scope: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.hung_up.set()
    scope.cancel()


def _told(work: Callable[[], Response]) -> Response:
    """Do it; what goes wrong comes out as the error that the client is told."""
    try:
        return work()
    except PhotoError as error:
        raise errors.of_photo(error) from error
    except PromptsError as error:
        raise errors.of_fields([("prompts", str(error))]) from error
    except (ServiceError, CancelledError):
        raise
    except Exception as error:
        _log.exception("the work on a photo failed")
        raise errors.internal() from error
