"""A photo in, every garment out as a clean crop: the reference consumer of weightcache.

`app` is the deployment on Modal. `models` turns a photo into garments, `web` is the HTTP service and the page, and
`benchmarks` measures.
"""
