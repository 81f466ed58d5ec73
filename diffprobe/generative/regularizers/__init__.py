"""Class-contrast terms of the denoiser's training, one file each: what is added to the loss on long-tailed classes.

A file offers ``Config`` (a frozen dataclass: the keys below `regularizer.params`) and
``make(config, process, kernels, classes) -> Regularizer`` (`base.py` has the contract). The name of the file is the
name of the regularizer.
"""

SHARED = ("base",)
"""Files of this folder that are not a regularizer."""
