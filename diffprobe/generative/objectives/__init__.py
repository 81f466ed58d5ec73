"""Training objectives of the denoiser, one file each: what the network predicts and how its errors are weighted.

A file offers ``Config`` (a frozen dataclass: the keys below `objective.params`) and
``make(config, process) -> Objective`` (`base.py` has the contract). An objective that is not defined on betas also
offers ``make_process(config) -> DeclaredProcess``: its forward process, how timesteps are drawn, and the scheduler that
is saved with the model. The name of the file is the name of the objective.
"""

SHARED = ("base",)
"""Files of this folder that are not an objective."""
