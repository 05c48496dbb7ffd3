"""A photo in, every garment out as a clean crop: the reference consumer of weightcache.

GroundingDINO finds the garments, SAM 2 cuts them out, and weightcache makes it start fast. Read in this order:
`startup` (from the Volume to two models in memory), `pipeline` (from a photo to crops), `service` (HTTP), `app`
(Modal).
"""
