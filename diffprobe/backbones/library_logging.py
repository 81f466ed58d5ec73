"""What diffusers and transformers say on the console by themselves. Owns switching it off while weights are moved."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence the progress bars and warnings of diffusers and transformers; errors stay, settings come back.

    A bar for half a second of reading hides the ones that matter, and what the libraries warn of (an image processor
    that no part of diffprobe uses) is not the user's to mend. Import their classes inside, some of it is said there.
    """
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    libraries = (of_diffusers, of_transformers)
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        yield
    finally:
        for library, (bar, verbosity) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()
