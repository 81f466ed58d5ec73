"""How a run trains each kind of probe: one file per kind, found by name (`core.registry.PROBE_TRAINING`).

A file is named like the folder of its kind in `probes/`, imports neither torch nor Lightning at the top, and offers

- `TAKES_GRID`: whether `probe.grid` is allowed, and `WITHOUT_GRID`: names of probes for which it is not;
- `validate(config, params)`: refuses what the kind cannot do, before anything is loaded; `params` are the settings of
  each probe of the run;
- `check_cells(config, cells)`: refuses cells that the kind cannot read together;
- `make_module(plan, source) -> ProbeModule`: the LightningModule that trains the probes of a plan on a source;
- `summary(result) -> str`: what the run found, in a few words for a terminal.
"""

SHARED = ("types",)
"""Files of this folder that are not kinds."""
