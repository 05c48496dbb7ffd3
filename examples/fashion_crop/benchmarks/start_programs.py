"""The programs that `scenarios` runs in fresh processes: a cold start in the usual way, and with weightcache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Result = dict[str, Any]


# Both programs leave `phases`, `models` and `crop`. Each phase is the time since the one before.
HEAD = """\
import time
marks = {"python": time.monotonic()}
import json, sys
job = json.loads(sys.argv[1])
"""


USUAL = """\
import os
for name, url in job["urls"].items():
    path = os.path.join(job["weights"], name)
    if not os.path.exists(path):
        import urllib.request
        os.makedirs(job["weights"], exist_ok=True)
        urllib.request.urlretrieve(url, path)
marks["download"] = time.monotonic()
from fashion_crop.benchmarks import baseline
marks["imports"] = time.monotonic()
detector, segmenter = baseline.build_detector(job["bert"], job["size"]), baseline.build_segmenter(job["size"])
marks["build"] = time.monotonic()
first, second = (os.path.join(job["weights"], name) for name in job["urls"])
baseline.load_detector(detector, first)
predictor = baseline.load_segmenter(segmenter, second)
models = detector, segmenter
beside = {}

def find(pixels, prompts):
    return baseline.detect(detector, pixels, prompts, box_threshold=0, text_threshold=0, size=job["size"])[:2]

def cut(pixels, boxes):
    return baseline.segment(predictor, pixels, boxes)
"""


OURS = """\
from weightcache import prefetch, timeline
timeline()
called = time.monotonic()
wanted = ["groundingdino", "bert-base-uncased", "sam2-large"]
reading = prefetch(job["manifest"], root=job["root"], only=wanted, into="memory")
from fashion_crop.web.backend import start
backend = start(job["manifest"], root=job["root"], reading=reading, stand_ins=job["size"] == "stand-in")
before, marked = backend.phases, marks["python"]
beside = {"prefetch": before["prefetch"]}
imports = called - marked + before["import"]
weights = sum(before.get(name, 0) for name in ("inspect", "wait", "reload", "download", "verify", "commit"))
for name, seconds in ("download", weights), ("imports", imports), ("build", before["build"]):
    marks[name] = marked = marked + seconds
detector, segmenter = backend.pipeline._detector, backend.pipeline._segmenter
models = detector._model, segmenter._predictor.model

def find(pixels, prompts):
    import numpy
    found = detector.detect(pixels, prompts, box_threshold=0, text_threshold=0)
    return numpy.array([each.box for each in found]), numpy.array([each.score for each in found])

def cut(pixels, boxes):
    from fashion_crop.models.detection import Box
    return segmenter.segment(pixels, [Box(*each) for each in boxes])
"""


TAIL = """
total = 0.0
for model in models:
    for weight in model.parameters():  # a number of each page
        total += float(weight.detach().reshape(-1)[::1024].double().sum())
marks["load"] = time.monotonic()
import os, resource
result = {"sum": total, "beside": beside, "cpu": time.process_time()}
result["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
last = job["began"]
result["phases"] = {}
for name, mark in marks.items():
    result["phases"][name], last = mark - last, mark
if job["photo"]:
    import numpy as np
    from fashion_crop.models.pipeline import GARMENTS
    prompts = [each for each in GARMENTS if each != "t-shirt"]  # a word within which is another prompt's
    pixels, result["photos"] = np.load(job["photo"]), []
    for _ in range(2):
        began = time.monotonic()
        boxes, scores = find(pixels, prompts)
        best = np.argsort(-scores, kind="stable")[:5]
        masks, qualities = cut(pixels, boxes[best])
        result["photos"].append(time.monotonic() - began)
    if os.path.exists(job["answer"]):
        with np.load(job["answer"]) as other:
            cut_again = cut(pixels, other["boxes"][other["best"]])
            result["differences"] = {
                "box": float(abs(boxes - other["boxes"]).max()),
                "score": float(abs(scores - other["scores"]).max()),
                "mask": float((cut_again[0] != other["masks"]).mean()),
                "quality": float(abs(cut_again[1] - other["qualities"]).max()),
                "of the mask": float(other["masks"].mean()),
            }
    else:
        np.savez(job["answer"], boxes=boxes, scores=scores, best=best, masks=masks, qualities=qualities)
print(json.dumps(result))
"""


FILL_BERT = """\
import sys
from pathlib import Path
from fashion_crop.benchmarks.baseline import fill_text_encoder
fill_text_encoder(*map(Path, sys.argv[1:]))
"""
