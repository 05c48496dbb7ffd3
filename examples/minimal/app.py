"""BERT fills in a masked word, on Modal, with its weights on a Volume: modal run examples/minimal/app.py"""

import modal

from weightcache.modal import WeightVolume

cache = WeightVolume("weights.toml", name="minimal-models", path="/root/data/weights")
image = modal.Image.debian_slim(python_version="3.11").uv_pip_install("torch==2.13.0", "transformers==5.23.0")
app = modal.App("minimal", image=cache.add_to(image), volumes=cache.mounts)
reading = cache.prefetch()  # a container reads the Volume from here on, while Python imports
with image.imports():
    from transformers import pipeline


@app.cls(startup_timeout=900)  # seconds; the first container downloads the weights
class Bert:
    @modal.enter()
    def load(self):
        weights = cache.ensure()  # name → verified path
        self.fill_mask = pipeline("fill-mask", model=str(weights["bert-base-uncased"]))

    @modal.method()
    def fill(self, text: str) -> list[str]:
        return [found["token_str"] for found in self.fill_mask(text)]


@app.local_entrypoint()
def main(text: str = "She wears a red [MASK]."):
    print(*Bert().fill.remote(text))
