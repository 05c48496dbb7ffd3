"""A class with a memory snapshot, which loads weights that a prefetch reads during the imports."""

import modal

from weightcache.modal import WeightVolume

app = modal.App("detector")
cache = WeightVolume("weights.toml", name="models", path="/models")
image = cache.add_to(modal.Image.debian_slim().pip_install("torch"))
reading = cache.prefetch(into="memory")

with image.imports():
    import torch

    from weightcache.torch import assign_into, load_state_dict, skip_init


@app.cls(image=image, volumes=cache.mounts, enable_memory_snapshot=True, startup_timeout=1800)
class Detector:
    @modal.enter(snap=True)
    def load(self):
        weights = cache.ensure()
        with skip_init():
            self.model = torch.nn.Linear(64, 64)
        assign_into(self.model, load_state_dict(weights["detector"], prefetched=reading))
        reading.close()
        self.outcome = weights.report["detector"].outcome

    @modal.method()
    def detect(self, value):
        with torch.inference_mode():
            return self.outcome, self.model(torch.full((64,), value)).tolist()


@app.local_entrypoint()
def main():
    print(*Detector().detect.remote(0.5))
