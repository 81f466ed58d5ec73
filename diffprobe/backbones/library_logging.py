"""Silence the console output of diffusers and transformers while weights are loaded."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_ON_IMPORT = ("torchao", "torch.utils._pytree")
"""Loggers of what both import where it is installed: kernels of other devices that torchao cannot load."""


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the progress bars and warnings of diffusers and transformers; errors stay, and settings are restored.

    Their warnings concern parts that diffprobe does not use (an image processor), and their bars hide ours. Import
    their classes inside: some warnings are emitted on import.
    """
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    imported = [(logger, logger.level) for logger in map(logging.getLogger, _ON_IMPORT)]
    for logger, _ in imported:
        logger.setLevel(logging.ERROR)
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for logger, level in imported:
            logger.setLevel(level)
        for library, (bar, verbosity) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
