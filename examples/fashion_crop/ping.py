"""Option C on Modal: a request every five minutes keeps the app awake in working hours. Deploy the app first, then

    FASHION_URL=https://YOU--fashion-crop-fashioncrop-web.modal.run modal deploy examples/fashion_crop/ping.py

`ping.yml` does the same on GitHub.
"""

import os
from urllib.request import urlopen

import modal

WORKING_HOURS = modal.Cron("*/5 8-17 * * 1-5", timezone="Europe/Berlin")
URL = os.environ.get("FASHION_URL", "").rstrip("/")
if not URL:
    raise ValueError("FASHION_URL is not set: make it the URL that `modal deploy examples/fashion_crop/app.py` printed")

app = modal.App("fashion-crop-ping")
image = modal.Image.debian_slim(python_version="3.11").env({"FASHION_URL": URL})  # a container reads this module too


@app.function(image=image, schedule=WORKING_HOURS, timeout=600, scaledown_window=2)
def ping():
    with urlopen(f"{URL}/healthz", timeout=300) as answer:
        print(answer.status, answer.read().decode())
