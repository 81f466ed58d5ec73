"""Training objectives of the denoiser, one file each: what the network predicts and how its errors are weighted.

A file offers ``Config`` (a frozen dataclass: the keys below `objective.params`) and
``make(config, process) -> Objective`` (`base.py` has the contract). The name of the file is the name of the objective.
"""

SHARED = ("base",)
"""Files of this folder that are not an objective."""
