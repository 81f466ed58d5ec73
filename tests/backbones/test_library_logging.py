import logging

import pytest
from diffusers.utils import logging as of_diffusers
from transformers.utils import logging as of_transformers

from diffprobe.backbones.library_logging import quiet_libraries

LIBRARIES = (of_diffusers, of_transformers)


def settings() -> list[tuple[bool, int]]:
    return [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in LIBRARIES]


@pytest.mark.parametrize("bar", [True, False])
def test_all_is_silent_inside_and_as_before_outside(bar: bool, capfd: pytest.CaptureFixture[str]) -> None:
    for library in LIBRARIES:
        library.enable_progress_bar() if bar else library.disable_progress_bar()
        library.set_verbosity_info()
    before = settings()
    with pytest.raises(RuntimeError), quiet_libraries():  # an error inside changes nothing about it
        for library in LIBRARIES:
            library.get_logger(f"{library.__name__.partition('.')[0]}.some").warning("nobody's business")
        assert [bar for bar, _ in settings()] == [False, False]
        raise RuntimeError
    assert settings() == before
    assert "nobody's business" not in "".join(capfd.readouterr())
    for library in LIBRARIES:
        library.set_verbosity_warning()
        library.enable_progress_bar()


def test_kernels_that_cannot_be_loaded_are_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    logger, kernel = logging.getLogger("torchao"), logging.getLogger("torchao.some")
    before = logger.level
    with quiet_libraries():
        kernel.warning("no such kernel")
    assert logger.level == before and not caplog.messages
    kernel.warning("no such kernel")
    assert caplog.messages == ["no such kernel"]
