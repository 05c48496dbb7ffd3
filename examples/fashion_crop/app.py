"""The example on Modal: a Volume for the weights, a class that loads them, a URL. Deploy it with

    modal deploy examples/fashion_crop/app.py

Two variables are read when it is deployed. ``FASHION_OPTION`` says what is paid for a fast first answer; ``README.md``
has what each option costs. ``FASHION_GPU`` names a GPU, such as ``L4``; without it the models run on two cores.
"""

import os
from pathlib import Path
from urllib.request import urlopen

import modal

from weightcache import timeline
from weightcache.modal import WeightVolume

timeline()  # measures this start; `start` ends it
OPTIONS = {
    "A": {"scaledown_window": 60},  # sleeps after a minute without work, and starts from the Volume
    "B": {"min_containers": 1},  # one container never sleeps
    "C": {"scaledown_window": 15 * 60},  # awake in working hours: `ping` comes before it falls asleep
    "D": {"scaledown_window": 60, "enable_memory_snapshot": True},  # as A, from a snapshot with the weights inside
}
WORKING_HOURS = modal.Cron("*/5 8-17 * * 1-5", timezone="Europe/Berlin")  # for option C

OPTION = os.environ.get("FASHION_OPTION") or "A"
GPU = os.environ.get("FASHION_GPU") or None
if OPTION not in OPTIONS:
    raise ValueError(f"FASHION_OPTION must be one of {', '.join(OPTIONS)}, got {OPTION!r}: README.md says what each is")
if OPTION == "D" and GPU:
    raise ValueError(f"FASHION_OPTION=D takes its snapshot before there is a GPU: leave out FASHION_GPU={GPU}")

HERE = Path(__file__).parent
app = modal.App("fashion-crop")
cache = WeightVolume("weights.toml", name="fashion-models", path="/root/data/weights")
python = modal.Image.debian_slim(python_version="3.11")
deployed = {"FASHION_OPTION": OPTION, "FASHION_GPU": GPU or ""}  # a container reads this module again

image = (
    python.uv_pip_install(  # first, alone: without a GPU it is 200 MB instead of gigabytes of CUDA
        "torch==2.13.0", "torchvision==0.28.0", index_url=None if GPU else "https://download.pytorch.org/whl/cpu"
    )
    .uv_pip_install(requirements=[str(HERE / "requirements.txt")])
    .uv_pip_install(
        requirements=[str(HERE / "requirements-without-dependencies.txt")],
        extra_options="--no-deps --no-build-isolation",
        env={"SAM2_BUILD_CUDA": "0"},
    )
    .env(deployed)
)
image = cache.add_to(image).add_local_dir(
    HERE,
    "/root/fashion_crop",
    ignore=~modal.FilePatternMatcher("models/*.py", "web/*.py", "web/page/*", "!web/serve.py", "__init__.py"),
)

# The manifest has smaller segmenters too. Only these are read and downloaded.
CHECKPOINTS = ("groundingdino", "sam2-large", "bert-base-uncased")

reading = cache.prefetch(
    only=CHECKPOINTS, into="memory"
)  # in a container the Volume is read from here on, while Python imports
with image.imports():
    from fashion_crop.web.backend import start
    from fashion_crop.web.service import Settings, create_app


@app.cls(
    image=image,
    volumes=cache.mounts,
    secrets=[modal.Secret.from_name("fashion-api-keys", required_keys=["FASHION_API_KEY"])],
    cpu=2,
    memory=16384,
    gpu=GPU,
    timeout=600,
    startup_timeout=900,  # seconds; the first container downloads the weights
    max_containers=4,  # a bound on what others can make it cost
    **OPTIONS[OPTION],
)
@modal.concurrent(max_inputs=8, target_inputs=2)
class FashionCrop:
    @modal.enter(snap=OPTION == "D")
    def load(self):
        self.backend = start(
            cache.manifest,
            root=cache.path,
            ensure=lambda: cache.ensure(only=CHECKPOINTS),
            reading=reading,
            device="cuda" if GPU else "cpu",
        )

    @modal.asgi_app()
    def web(self):
        # Fewer photos than a container gets requests, so that the others are asked at once to retry.
        return create_app(self.backend, settings=Settings(api_key=os.environ["FASHION_API_KEY"], max_queue=4))


if OPTION == "C":

    @app.function(image=cache.add_to(python.env(deployed)), schedule=WORKING_HOURS, timeout=600, scaledown_window=2)
    def ping():
        with urlopen(f"{FashionCrop().web.get_web_url()}/healthz", timeout=300) as answer:
            print(answer.status, answer.read().decode())
