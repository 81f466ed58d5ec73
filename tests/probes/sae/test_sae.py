import subprocess
import sys

import pytest

import diffprobe.probes.sae as package
from diffprobe.core.registry import probes


def test_shared_files_are_no_variants():
    names = probes("sae").names()
    assert names == [
        "batch_topk", "jumprelu", "matryoshka", "revelio_released", "timestep_topk", "topk", "transcoder",
    ]  # fmt: skip


@pytest.mark.slow
def test_variants_are_listed_without_torch_and_the_base_class_is_at_the_door():
    code = "import sys, diffprobe.probes.sae as p; assert 'torch' not in sys.modules; print(p.KSAE.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "KSAE"
    with pytest.raises(AttributeError, match="KSAEE"):
        package.KSAEE  # noqa: B018
