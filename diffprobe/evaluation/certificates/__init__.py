"""Kinds of methods that `diffprobe certify` scores: a file each.

A file offers:

- `HELP`: what a method of this kind is, in one line.
- `SIGNATURE`: the signature of a Python callable of this kind, as text for messages; a `Protocol` class in the file
  documents it.
- `Config`: a frozen dataclass that inherits from `settings.WorldSettings`: the settings and thresholds, each with its
  help text below it.
- `accepts(path)`: whether a file or folder is a method of this kind, by its header alone.
- `certify(method, config)`: measures a `method.Method` and its baselines, and returns a
  `diffprobe.analysis.certification.check.Certificate`.
"""

SHARED = ("method", "settings", "dictionary_samples", "scene_features", "steering")
"""Files of this package that are not kinds."""
