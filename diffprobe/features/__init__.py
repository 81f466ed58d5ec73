"""Features of images from a frozen backbone, computed while training (live) or read from disk (the feature store).

The store's format is in PROTOCOL.md. `manifest` defines its identity, `extract` fills it through `writer`, `reader`
opens it (`FeatureStore`), `verify` checks it. `live` and `stored` are the two LightningDataModules; they yield the
same batches.
"""
