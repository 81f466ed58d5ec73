"""Captioned images in WebDataset shards: writing, indexing, verification, reading, decoding and streaming.

The format is in PROTOCOL.md; `datasets` has one file per data set.
"""
