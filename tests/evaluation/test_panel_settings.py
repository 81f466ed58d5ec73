"""Settings of panels: numbers of at least one."""

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.panel_settings import PanelConfig


@pytest.mark.parametrize("name", ["n_latents", "min_active", "n_top", "n_ends", "n_printed", "n_resamples"])
def test_nothing_of_something_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=0.*at least 1"):
        PanelConfig(**{name: 0})
