"""Crop every garment out of a photo, on Modal: GroundingDINO finds the garments, SAM 2 says which pixels are theirs."""

import gc
import os
from pathlib import Path

import modal

from weightcache import timeline
from weightcache.modal import WeightVolume
from weightcache.torch import skip_init

start = timeline()  # measures a cold start, from here to `ready`

# ## Settings: environment variables at deployment, whose prices are in README.md
# Each container imports this module again, so its image gets the same values.
OPTIONS = {"A": {"scaledown_window": 60}, "B": {"min_containers": 1}, "C": {"scaledown_window": 15 * 60}}
OPTIONS["D"] = {"scaledown_window": 60, "enable_memory_snapshot": True}
VALUES = {"FASHION_OPTION": list(OPTIONS), "FASHION_SEGMENTER": ["large", "base-plus", "small", "tiny"]}
env = {name: os.environ.get(name) or values[0] for name, values in VALUES.items()}
for name in (each for each in VALUES if env[each] not in VALUES[each]):
    raise ValueError(f"{name} must be one of {', '.join(VALUES[name])}, got {env[name]!r}: see README.md")
OPTION, SEGMENTER = env.values()
GPU = env["FASHION_GPU"] = os.environ.get("FASHION_GPU", "")  # such as L4; without it two cores do the work

# ## The weights lie on a Volume, pinned by weights.toml; code and packages are in the image
# PyTorch's index has a torch without gigabytes of CUDA. The last two packages ask for others that only demos use.
CHECKPOINTS = ["groundingdino", "bert-base-uncased", f"sam2-{SEGMENTER}"]
cache = WeightVolume("weights.toml", name="fashion-models", path="/root/data/weights")
here, url = Path(__file__).parent, None if GPU else "https://download.pytorch.org/whl/cpu"
alone = {"extra_options": "--no-deps --no-build-isolation", "env": {"SAM2_BUILD_CUDA": "0"}}
code = modal.FilePatternMatcher("models/*.py", "web/*.py", "web/page/*", "!web/serve.py", "__init__.py")
image = modal.Image.debian_slim(python_version="3.11")
image = image.uv_pip_install("torch==2.13.0", "torchvision==0.28.0", index_url=url)
image = image.uv_pip_install(requirements=[f"{here}/requirements.txt"])
image = image.uv_pip_install(requirements=[f"{here}/requirements-without-dependencies.txt"], **alone)
image = cache.add_to(image.env(env | {"HF_HUB_OFFLINE": "1"})).add_local_dir(here, "/root/fashion_crop", ignore=~code)

# ## A cold start: read the Volume into memory, and meanwhile import; then verify, build and load
reading = cache.prefetch(only=CHECKPOINTS, into="memory")
with image.imports():
    gc.disable()  # until `load` ends: it would scan the million objects of these imports, for over a second
    from fashion_crop.models import crops, grounding_dino, photo, pipeline, sam
    from fashion_crop.web import backend, service

app = modal.App("fashion-crop", image=image, volumes=cache.mounts)
KEY = modal.Secret.from_name("fashion-api-keys", required_keys=["FASHION_API_KEY"])
LIMITS = {"timeout": 600, "max_containers": 4}  # seconds, and a bound on the price


@app.cls(secrets=[KEY], cpu=2, memory=16384, gpu=GPU or None, startup_timeout=900, **LIMITS, **OPTIONS[OPTION])
@modal.concurrent(max_inputs=8, target_inputs=2)
class FashionCrop:
    @modal.enter(snap=OPTION == "D")
    def load(self):
        with reading:
            weights = cache.ensure(only=CHECKPOINTS)
            with skip_init():  # no random numbers for weights that are loaded next
                detector, segmenter = grounding_dino.build(weights["bert-base-uncased"]), sam.build(SEGMENTER)
            grounding_dino.load(detector, weights["groundingdino"], prefetched=reading)
            sam.load(segmenter, weights[f"sam2-{SEGMENTER}"], prefetched=reading)
        self.pipeline = pipeline.Pipeline(grounding_dino.GroundingDino(detector), sam.Sam2(segmenter))
        gc.freeze(), gc.enable()

    @modal.enter()
    def move(self):  # after `load`, or after its snapshot is restored: before that there is no GPU
        with start.phase("to device"):
            self.pipeline.to("cuda" if GPU else "cpu")
        start.ready()

    # ## Two ways in: from Python, as `main` does, and a page with an API
    @modal.method()
    def crop(self, data: bytes, name: str, strictness: float) -> dict[str, bytes]:
        try:
            whole, files = photo.open_photo(data), {}
            garments = self.pipeline.segment(whole, pipeline.Options(box_threshold=strictness))
        except ValueError as error:  # of a class that the caller's machine does not have
            raise ValueError(str(error)) from None
        for garment in garments:
            crop = crops.render(garment, whole, crops.Rendering())
            files[crops.file_name(name, len(files) + 1, garment.label, "png")] = crops.encode(crop.image, "png")
        return files

    @modal.asgi_app()
    def web(self):  # fewer photos wait than a container gets requests, so that others are asked at once to retry
        facts = backend.describe(self.pipeline, cache.manifest, start, SEGMENTER, "cuda" if GPU else "cpu")
        return service.create_app(facts, settings=service.Settings(api_key=os.environ["FASHION_API_KEY"], max_queue=4))


@app.local_entrypoint()
def main(photo: str, folder: str = "crops", strictness: float = 0.35):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in FashionCrop().crop.remote(Path(photo).read_bytes(), Path(photo).name, strictness).items():
        print(Path(folder, name), Path(folder, name).write_bytes(content), "bytes")
