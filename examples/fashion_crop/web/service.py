"""The HTTP service: its routes.

`admission` checks requests, `work` processes one photo, `answers` defines the answers, `errors` the errors, and `pages`
serves the page. Photos are only in memory while they are processed. They are not stored, written to disk or logged.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Form, Request, Response, Security
from fastapi.responses import PlainTextResponse
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.formparsers import MultiPartParser

from fashion_crop.models.crops import Rendering
from fashion_crop.models.pipeline import Options

from . import errors, forms, metrics, pages
from .admission import FORM, Admission
from .answers import JSON, ZIP, CropsAnswer, Defaults, DetectAnswer, InfoAnswer, Limits, StateAnswer, negotiate
from .errors import documented
from .forms import CropForm, DetectForm, refuse_repeated_fields
from .loading import Service
from .observing import Observing
from .settings import Settings
from .work import Job

if TYPE_CHECKING:
    from .backend import Backend

_defaults = {**vars(Options()), **vars(Rendering())}


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
    return await service.workers.run(request, job, lambda: job.crop(form.rendering(), media_type))


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


# Monitors ask with HEAD. It is in no schema: a program that asks for no body needs no client generated for it.
_READ = ["GET", "HEAD"]


@state.get("/healthz", operation_id="health")
@state.api_route("/healthz", methods=_READ, include_in_schema=False)
async def health() -> StateAnswer:
    """Answer that the server is running."""
    return StateAnswer(status="alive")


@state.get("/readyz", operation_id="ready", responses=documented(503))
@state.api_route("/readyz", methods=_READ, include_in_schema=False)
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
            max_garments=_defaults["max_garments"],
        ),
        defaults=Defaults.model_validate(_defaults),
    )


@state.get(
    "/metrics",
    operation_id="metrics",
    response_class=PlainTextResponse,
    responses={200: {"description": "In the text format of Prometheus.", "content": {"text/plain": {}}}},
)
async def read_metrics(service: Served) -> Response:
    """Return the numbers of this process: requests, photos that wait, seconds by stage, phases of the cold start."""
    return Response(service.metrics.as_text(), headers={"Content-Type": metrics.CONTENT_TYPE})


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
    app.add_middleware(Observing, metrics=service.metrics, paths=paths)  # the last one added is around the others
    errors.install(app)
    forms.install(app)
    return app


def _key_documented(settings: Settings) -> dict[str, Any]:
    """Describe the key in the OpenAPI schema; `Admission` checks it."""
    if settings.api_key is None:
        return {}
    schemes = HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False)
    return {"dependencies": [Security(scheme) for scheme in schemes], "responses": documented(401)}
