"""Captioned images in WebDataset shards: written (write), indexed (index), read (read, decode), streamed (stream).

The format is in PROTOCOL.md. Next in the flow: `diffprobe.backbones`, which turns images into features.
"""
