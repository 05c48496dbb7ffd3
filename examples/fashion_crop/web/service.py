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

from . import errors, forms, metrics, pages, request_ids
from .admission import FORM, Admission
from .answers import (
    JSON,
    ZIP,
    CropInfo,
    CropsAnswer,
    Defaults,
    DetectAnswer,
    InfoAnswer,
    Limits,
    MasksAnswer,
    RenderingDefaults,
    StateAnswer,
)
from .errors import documented
from .forms import CropForm, FindForm, refuse_repeated_fields
from .loading import Service
from .negotiation import negotiate
from .observing import Observing
from .settings import Settings
from .work import Job

if TYPE_CHECKING:
    from .backend import Backend

_defaults = Options()


def _service(request: Request) -> Service:
    return request.app.state.service


Served = Annotated[Service, Depends(_service)]


state = APIRouter(tags=["state"])
photos = APIRouter(
    tags=["photos"],
    dependencies=[Depends(refuse_repeated_fields)],
    responses=documented(400, 406, 408, 413, 415, 422, 500, 503),
)


_HEADERS = {
    "Server-Timing": {"description": "Milliseconds by stage, as timings_ms.", "schema": {"type": "string"}},
    request_ids.HEADER: errors.REQUEST_ID,
}


@photos.post(
    "/v1/crops",
    operation_id="crop",
    response_model=CropsAnswer,
    responses={200: {"headers": _HEADERS, "content": {ZIP: {"schema": {"type": "string", "format": "binary"}}}}},
)
async def crop(
    request: Request, form: Annotated[CropForm, Form(media_type="multipart/form-data")], service: Served
) -> Response:
    """Cut every garment out of a photo, in the photo's original pixels.

    The answer is JSON, or by `Accept: application/zip` a zip with the pictures and a manifest.json. A picture is named
    by the photo, its number and its label, as in `holiday_01_shirt.png`.
    """
    media_type = negotiate(request, JSON, ZIP)
    job, rendering = _job(form, service), form.rendering()
    return await service.workers.run(request, job, lambda: job.crop(rendering, media_type))


@photos.post("/v1/masks", operation_id="masks", response_model=MasksAnswer, responses={200: {"headers": _HEADERS}})
async def masks(
    request: Request, form: Annotated[FindForm, Form(media_type="multipart/form-data")], service: Served
) -> Response:
    """Return which pixels of a photo are garments, for a client that has the photo and renders the crops.

    Padding, background, aspect ratio and format then need no other request, nor does a higher `box_threshold`: leave
    out the garments with a lower score.
    """
    negotiate(request, JSON)
    job = _job(form, service)
    return await service.workers.run(request, job, job.masks)


@photos.post("/v1/detect", operation_id="detect", response_model=DetectAnswer, responses={200: {"headers": _HEADERS}})
async def detect(
    request: Request, form: Annotated[FindForm, Form(media_type="multipart/form-data")], service: Served
) -> Response:
    """Return where the garments of a photo are, without cutting them out: a fraction of the time."""
    negotiate(request, JSON)
    job = _job(form, service)
    return await service.workers.run(request, job, job.detect)


def _job(form: FindForm, service: Service) -> Job:
    settings = service.settings
    if (form.image.size or 0) > settings.max_bytes:
        raise errors.too_many_bytes(settings.max_bytes)
    return Job(
        backend=service.backend(),
        image=form.image.file,
        name=form.image.filename or "",
        options=form.options(settings.max_prompts, settings.max_prompt),
        settings=settings,
        observe=service.metrics.observe,
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
    """Describe this server: its weights, packages, limits, what a crop is made of, and how its cold start went."""
    backend, limits = service.backend(), service.settings
    return InfoAnswer(
        stand_ins=backend.stand_ins,
        weights=dict(backend.weights),
        device=backend.device,
        segmenter=backend.segmenter,
        versions=dict(backend.versions),
        phases=dict(backend.phases),
        limits=Limits(
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
            max_prompts=limits.max_prompts,
            max_garments=_defaults.max_garments,
        ),
        defaults=Defaults.model_validate(_defaults, from_attributes=True),
        rendering=RenderingDefaults.model_validate(Rendering(), from_attributes=True),
        crops=CropInfo(),
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
