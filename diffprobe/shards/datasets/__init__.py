"""One data set a file: where its images come from, keys, labels, splits, licence. Built by `diffprobe data build`.

A file offers `build(..., out: Path) -> ShardSet`, which writes the same bytes each time.
"""
