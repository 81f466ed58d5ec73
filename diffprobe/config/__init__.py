"""From YAML presets, experiment files and the command line to frozen dataclasses, judged before anything heavy loads.

Flow: `locate` (which folders) -> `compose` (Hydra merges) -> `parse` (strict) -> `schema` (what a run may say).
`faults` says what could not be merged.
"""
