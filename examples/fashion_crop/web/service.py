"""The HTTP service: routes and settings.

`admission` checks requests, `work` processes one photo, `answers` defines the answers, `errors` the errors, and `pages`
serves the page. Photos are only in memory while they are processed. They are not stored, written to disk or logged.
"""

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form, Request, Response, Security
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.formparsers import MultiPartParser

from fashion_crop.models.pipeline import Options
from weightcache import WeightCacheError

from . import errors, pages
from .admission import FORM, Admission
from .answers import JSON, ZIP, CropsAnswer, Defaults, DetectAnswer, InfoAnswer, Limits, StateAnswer, negotiate
from .errors import ServiceError, documented
from .forms import CropForm, DetectForm, refuse_repeated_fields
from .work import Job, Workers

if TYPE_CHECKING:
    from .backend import Backend

LOADING = 2  # seconds after which to ask again

_log = logging.getLogger(__name__)
_defaults = Options()


@dataclass(frozen=True)
class Settings:
    """What the service allows.

    Attributes:
        max_bytes: Of a photo as it is sent.
        max_pixels: Of a photo; width by height.
        max_prompts: In a request.
        max_prompt: Characters of one.
        max_queue: Photos that wait; one more is refused.
        workers: Photos that are worked on at once. Each takes all cores, so more than one gains little on a CPU.
        api_key: What a POST must show, if it must; spaces and newlines around it do not count.
        grace: Seconds after which an upload, or the reading of an answer, must be as far as ``slowest`` says.
        slowest: Bytes a second.
        max_answer: Bytes of all crops of an answer, as PNG.

    Raises:
        ValueError: The key is empty, as that of a secret that was never filled in.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    max_prompts: int = 50
    max_prompt: int = 200
    max_queue: int = 16
    workers: int = 1
    api_key: str | None = field(default=None, repr=False)
    grace: float = 20.0
    slowest: int = 50_000
    max_answer: int = 64_000_000

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("api_key is empty: give a key, or None to let everybody in")


class Service:
    """The models, once they are loaded, and the worker threads."""

    def __init__(self, load: "Backend | Callable[[], Backend]", settings: Settings) -> None:
        self.settings, self.workers = settings, Workers(settings.workers)
        self._load = load if callable(load) else None
        self._backend = None if callable(load) else load
        self._failure = ""

    def begin(self) -> None:
        """Start to load the models, unless they are there."""
        if self._load is not None:
            # A daemon, so that a server that is ended while it loads does end.
            threading.Thread(target=self.load, args=(self._load,), name="fashion-load", daemon=True).start()

    def load(self, load: "Callable[[], Backend]") -> None:
        """Load the models, or store the reason of the failure."""
        try:
            self._backend = load()
        except (WeightCacheError, ImportError) as error:  # which are written for people
            _log.error("the models cannot be loaded: %s", error)
            self._failure = str(error)
        except Exception as error:  # noqa: BLE001 (the server keeps running and reports it)
            _log.exception("the models cannot be loaded")
            self._failure = f"{type(error).__name__}, of which the server's log says more"

    def backend(self) -> "Backend":
        """Return the models.

        Raises:
            ServiceError: They are not loaded yet, or loading failed.
        """
        if self._failure:
            raise ServiceError(503, "loading-failed", f"the models cannot be loaded: {self._failure}")
        if self._backend is None:
            text = f"the models are being loaded: try again in {LOADING} seconds"
            raise ServiceError(503, "loading", text, headers={"Retry-After": str(LOADING)})
        return self._backend


def _service(request: Request) -> Service:
    return request.app.state.service


Served = Annotated[Service, Depends(_service)]


state = APIRouter(tags=["state"])
photos = APIRouter(
    tags=["photos"],
    dependencies=[Depends(refuse_repeated_fields)],
    responses=documented(400, 406, 408, 413, 415, 422, 500, 503),
)


@photos.post(
    "/v1/crops",
    operation_id="crop",
    response_model=CropsAnswer,
    responses={200: {"content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def crop(
    request: Request, form: Annotated[CropForm, Form(media_type="multipart/form-data")], service: Served
) -> Response:
    """Cut every garment out of a photo: JSON, or by `Accept: application/zip` a zip of PNGs with a manifest.json."""
    media_type = negotiate(request, JSON, ZIP)
    job = _job(form, service)
    return await service.workers.run(request, job, lambda: job.crop(media_type))


@photos.post("/v1/detect", operation_id="detect", response_model=DetectAnswer)
async def detect(
    request: Request, form: Annotated[DetectForm, Form(media_type="multipart/form-data")], service: Served
) -> Response:
    """Return where the garments of a photo are, without cutting them out: a fraction of the time."""
    negotiate(request, JSON)
    job = _job(form, service)
    return await service.workers.run(request, job, job.detect)


def _job(form: DetectForm, service: Service) -> Job:
    limits = service.settings
    if (form.image.size or 0) > limits.max_bytes:
        raise errors.too_many_bytes(limits.max_bytes)
    return Job(
        backend=service.backend(),
        image=form.image.file,
        options=form.options(limits.max_prompts, limits.max_prompt),
        max_pixels=limits.max_pixels,
        max_answer=limits.max_answer,
    )


@state.get("/healthz", operation_id="health")
async def health() -> StateAnswer:
    """Answer that the server is running."""
    return StateAnswer(status="alive")


@state.get("/readyz", operation_id="ready", responses=documented(503))
async def ready(service: Served) -> StateAnswer:
    """Return whether the models are loaded."""
    service.backend()
    return StateAnswer(status="ready")


@state.get("/v1/info", operation_id="info", responses=documented(503))
async def info(service: Served) -> InfoAnswer:
    """Describe this server: its weights, packages, limits, and how its cold start went."""
    backend, limits = service.backend(), service.settings
    return InfoAnswer(
        stand_ins=backend.stand_ins,
        weights=dict(backend.weights),
        device=backend.device,
        versions=dict(backend.versions),
        phases=dict(backend.phases),
        limits=Limits(
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            max_prompts=limits.max_prompts,
            max_garments=_defaults.max_garments,
        ),
        defaults=Defaults.model_validate(_defaults, from_attributes=True),
    )


def create_app(load: "Backend | Callable[[], Backend]", *, settings: Settings | None = None) -> FastAPI:
    """Make the app.

    Args:
        load: The models, or what returns them; see `backend.start`. It is called in a thread when the app starts, and
            until it is done, what needs them is answered with 503 and Retry-After.
        settings: What the service allows.
    """
    service = Service(load, settings or Settings())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.begin()
        yield

    # Photos stay in memory, as much of it as Settings say; else those over 1 MB would go to a temporary file. It is one
    # number for all apps of a process.
    MultiPartParser.spool_max_size = max(MultiPartParser.spool_max_size, service.settings.max_bytes + FORM)
    app = FastAPI(
        title="fashion-crop",
        version="1",
        description="A photo in, every garment out as a clean crop.",
        lifespan=lifespan,
        docs_url=None,  # these pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(pages.router)
    app.include_router(state)
    app.include_router(photos, **_key_documented(service.settings))
    paths = {route.path for route in photos.routes}
    app.add_middleware(Admission, paths=paths, settings=service.settings, check_ready=service.backend)
    errors.install(app)
    return app


def _key_documented(settings: Settings) -> dict[str, Any]:
    """Describe the key in the OpenAPI schema; `Admission` checks it."""
    if settings.api_key is None:
        return {}
    schemes = HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False)
    return {"dependencies": [Security(scheme) for scheme in schemes], "responses": documented(401)}
