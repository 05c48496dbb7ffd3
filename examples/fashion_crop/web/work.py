"""Process one photo in a worker thread, until it is done or the client disconnects."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
from starlette.responses import Response

from fashion_crop.models.detection import CancelledError, OptionsError
from fashion_crop.models.labels import PromptsError
from fashion_crop.models.photo import PhotoError, open_photo

from . import answers, bodies, errors, request_ids
from .errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import BinaryIO

    from starlette.requests import Request

    from fashion_crop.models.crops import Garment, Rendering
    from fashion_crop.models.photo import Photo
    from fashion_crop.models.pipeline import Options

    from .backend import Backend
    from .settings import Settings

_log = logging.getLogger(__name__)


@dataclass
class Job:
    """A photo and the options of its request.

    Attributes:
        backend: The models.
        image: The uploaded file.
        name: Of the file, as the client calls it.
        options: What is looked for.
        settings: The limits.
        observe: Called with each stage and its seconds.
        disconnected: Set when the client has disconnected.
    """

    backend: Backend
    image: BinaryIO
    name: str
    options: Options
    settings: Settings
    observe: Callable[[str, float], None]
    disconnected: threading.Event = field(default_factory=threading.Event)
    _milliseconds: dict[str, float] = field(default_factory=dict)
    _marked: float = field(default_factory=time.perf_counter)

    def detect(self) -> Response:
        """Return the boxes of the garments."""
        photo = self._open()
        found = self.backend.pipeline.detect(photo, self.options, cancelled=self.disconnected.is_set)
        self._mark("detection")
        detections = [answers.of_detection(each) for each in found]
        answer = answers.DetectAnswer(**dict(self._head(photo)), detections=detections)
        return self._response(answer.model_dump_json(), answers.JSON)

    def masks(self) -> Response:
        """Return the masks of the garments."""
        photo = self._open()
        garments = self._segment(photo)
        masks = self._pictures().masks(garments)
        self._mark("encoding")
        return self._response(bodies.masks_as_json(self._head(photo), garments, masks), answers.JSON)

    def crop(self, rendering: Rendering, media_type: str) -> Response:
        """Return the crops of the garments as JSON or zip."""
        photo = self._open()
        garments = self._segment(photo)
        cuts = self._pictures().crops(garments, photo, rendering)
        self._mark("encoding")
        head = self._head(photo)
        if media_type == answers.JSON:
            return self._response(bodies.crops_as_json(head, cuts, rendering), media_type)
        body = bodies.crops_as_zip(head, cuts, rendering, self.name)
        return self._response(body, media_type, {"Content-Disposition": 'attachment; filename="garments.zip"'})

    def _open(self) -> Photo:
        self._mark("waiting")
        self._check()
        photo = open_photo(self.image.read(), max_pixels=self.settings.max_pixels)
        self._mark("decoding")
        return photo

    def _segment(self, photo: Photo) -> list[Garment]:
        return self.backend.pipeline.segment(photo, self.options, cancelled=self.disconnected.is_set, done=self._mark)

    def _pictures(self) -> bodies.Pictures:
        return bodies.Pictures(self.settings.max_answer, self._check)

    def _check(self) -> None:
        if self.disconnected.is_set():
            raise CancelledError

    def _mark(self, stage: str) -> None:
        """Record the time since the last mark as this stage."""
        now = time.perf_counter()
        seconds, self._marked = now - self._marked, now
        self._milliseconds[stage] = round(1000 * seconds, 1)
        self.observe(stage, seconds)

    def _head(self, photo: Photo) -> answers.Answer:
        return answers.Answer(
            image=answers.of_photo(photo),
            model=answers.ModelAnswer(stand_ins=self.backend.stand_ins, weights=dict(self.backend.weights)),
            timings_ms=answers.Timings(**self._milliseconds),
        )

    def _response(self, body: bytes | str, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
        timing = ", ".join(f"{stage};dur={spent:.1f}" for stage, spent in self._milliseconds.items())
        return Response(body, media_type=media_type, headers={"Server-Timing": timing, **(headers or {})})


class Workers:
    """A fixed number of threads; jobs wait for one in order of arrival."""

    def __init__(self, count: int) -> None:
        self._free = anyio.CapacityLimiter(count)

    def statistics(self) -> anyio.CapacityLimiterStatistics:
        """Return how many photos wait and how many are worked on. Call it on the event loop."""
        return self._free.statistics()

    async def run(self, request: Request, job: Job, work: Callable[[], Response]) -> Response:
        """Do the work unless the client disconnects.

        If it does, a waiting job leaves the queue at once, and a running job stops before its next step.

        Raises:
            ServiceError: The work failed.
        """
        with anyio.CancelScope() as scope:
            watcher = asyncio.create_task(_watch(request, job, scope))
            try:
                # Cancelling the scope ends the wait for a thread, not a running thread: no extra thread can start.
                return await anyio.to_thread.run_sync(_with_service_errors, work, limiter=self._free)
            except CancelledError:
                _log.info("the client of request %s disconnected: its work is stopped", request_ids.current())
            finally:
                watcher.cancel()
                job.disconnected.set()
        return Response(status_code=499)  # nobody receives it


async def _watch(request: Request, job: Job, scope: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.disconnected.set()
    scope.cancel()


def _with_service_errors(work: Callable[[], Response]) -> Response:
    """Call ``work``, and turn its exceptions into the `ServiceError` for the client."""
    try:
        return work()
    except PhotoError as error:
        raise errors.of_photo(error) from error
    except PromptsError as error:
        raise errors.of_fields([("prompts", str(error))]) from error
    except OptionsError as error:
        raise errors.of_fields(error.problems) from error
    except (ServiceError, CancelledError):
        raise
    except Exception as error:
        _log.exception("the work on the photo of request %s failed", request_ids.current())
        raise errors.internal() from error
