"""Configuration: YAML presets, experiment files and settings, merged and validated into frozen dataclasses.

`search_path` lists the folders, `compose` merges the files with Hydra, `parse` validates the result strictly against
the dataclasses of `schema` (or of another kind, see `kinds`). `source_lines` finds the line of each key and
`compose_errors` explains what Hydra cannot merge. `describe` writes configurations and their reference.
"""
