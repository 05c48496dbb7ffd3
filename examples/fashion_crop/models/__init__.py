"""From the bytes of a photo to its garments. Only `grounding_dino` and `sam` import torch.

Both have the same three parts: ``build`` makes the architecture without weights, ``load`` gives it the weights of a
checkpoint, and a class makes the loaded model a `Detector` or `Segmenter`.
"""
