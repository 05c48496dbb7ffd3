"""A program that opens `data/weights/…` in its working directory runs as it is."""

import subprocess
import sys

import modal

from weightcache.modal import WeightVolume

app = modal.App("unmodified")
cache = WeightVolume("weights.toml", name="models", path="/models")
image = cache.add_to(modal.Image.debian_slim()).add_local_dir("program", "/root/program")


@app.function(image=image, volumes=cache.mounts, timeout=1800)
def run():
    weights = cache.ensure()
    weights.link({"sam2": "/root/program/data/weights/sam2_hiera_large.pt"})
    done = subprocess.run([sys.executable, "main.py"], cwd="/root/program", capture_output=True, text=True, check=True)
    return weights.report["sam2"].outcome, done.stdout


@app.local_entrypoint()
def main():
    print(*run.remote())
