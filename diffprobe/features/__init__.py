"""Features: what the frozen backbone says of each image, streamed (live) or kept on disk (the feature store).

The store's format is in PROTOCOL.md: manifest.py says what fixes its content, writer.py and reader.py own its bytes,
extract.py fills it in one pass. live.py and stored.py hold the two LightningDataModules that feed every probe the same
batches. Next in the flow: `diffprobe.probes` and `diffprobe.training`.
"""
