"""A repository of several shards from the Hub, loaded by transformers."""

import modal

from weightcache.modal import WeightVolume

app = modal.App("encoder")
cache = WeightVolume("weights.toml", name="models", path="/models")
image = cache.add_to(modal.Image.debian_slim().pip_install("torch", "transformers"))


@app.cls(image=image, volumes=cache.mounts, startup_timeout=1800)
class Encoder:
    @modal.enter()
    def load(self):
        with cache.prefetch():  # reads the shards while Python imports
            from transformers import AutoModel

            self.weights = cache.ensure()
            self.model = AutoModel.from_pretrained(self.weights["bert"]).eval()

    @modal.method()
    def encode(self, tokens):
        import torch

        with torch.inference_mode():
            return self.model(torch.tensor([tokens])).last_hidden_state[0, 0].tolist()

    @modal.method()
    def outcome(self):
        return self.weights.report["bert"].outcome


@app.local_entrypoint()
def main():
    print("encoded", *Encoder().encode.remote([1, 2, 3]))
    print("outcome", Encoder().outcome.remote())
