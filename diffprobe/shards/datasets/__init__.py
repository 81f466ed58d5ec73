"""One data set per file: where its images come from, keys, labels, splits and licence (`diffprobe data build NAME`).

A file defines:

- ``HELP``: one line for the command line.
- ``CARD``: a `DatasetCard` with name, licence, counts and the split rule.
- ``add_arguments(parser)``: the sources, as options whose destinations are parameters of `build`.
- ``build(..., out) -> ShardSet``: writes the shards and their index below `out`, the same bytes each time.
- ``tiny(folder) -> (arguments, n_samples)``: writes a small source below `folder`; returns the arguments of `build`
  without `out`, and the number of samples that it then writes. The contract tests build every set from it.

``build`` may also have the parameters ``make_bar`` and ``announce`` (types in `core/progress.py`, default None): the
command line passes its progress bar, and what prints a note for the user.

A preset ``configs/data/<name>.yaml`` selects the set in a run. A set whose shards are in ``diffprobe/assets/<name>/``
is found by its name (`ShardSet.load`).
"""
