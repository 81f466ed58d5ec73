import pytest
import torch
import torch.nn.functional as F

from diffprobe.probes.sae.kernels import encoder_matmul
from diffprobe.probes.sae.kernels.encoder_matmul import chunk_of, cpu_vendor, encoder_chunks, mkl_is_narrow


def problem(n, d, m, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((n, d), (m, d), (m,)))


def all_of(x, W_enc, b_enc, **options):
    """All pre-activations, and how many rows each chunk had."""
    found = [(part, h.clone()) for part, h in encoder_chunks(x, W_enc, b_enc, **options)]
    return torch.cat([h for _, h in found]), [part.stop - part.start for part, _ in found]


@pytest.fixture
def by_onednn(monkeypatch):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(encoder_matmul, "mkl_is_narrow", lambda: True)
    monkeypatch.setattr(encoder_matmul, "MIN_ONEDNN_WEIGHTS", 1)


def test_chunks_share_one_buffer_of_the_stated_size():
    x, *weights = problem(10, 6, 16, torch.float64)
    seen = [(part, h.data_ptr(), h.clone()) for part, h in encoder_chunks(x, *weights, chunk_bytes=3 * 16 * 8)]
    assert [part.stop - part.start for part, _, _ in seen] == [3, 3, 3, 1] and len({at for _, at, _ in seen}) == 1
    torch.testing.assert_close(torch.cat([h for *_, h in seen]), F.linear(x, *weights))
    even = all_of(x, *weights, chunk_bytes=8 * 16 * 8)[1]
    assert even == [5, 5]  # not 8 and 2


def test_both_libraries_give_the_same_product(by_onednn):
    x, *weights = problem(10, 600, 500)
    found, rows = all_of(x, *weights, chunk_bytes=8 * 500 * 4)
    assert rows == [4, 4, 2]  # half of what the buffer holds: a chunk stands in memory twice
    exact = F.linear(x.double(), *(weight.double() for weight in weights))
    assert float((found - exact).norm() / exact.norm()) < 1e-6  # float32 all the way


def test_onednn_is_for_large_float32_products_on_a_cpu(by_onednn, monkeypatch):
    called = []
    monkeypatch.setattr(torch.Tensor, "to_mkldnn", lambda self: called.append(self.shape) or pytest.fail("not here"))
    all_of(*problem(4, 6, 16, torch.float64))
    with torch.autocast("cpu", torch.bfloat16):
        assert all_of(*problem(4, 6, 16))[0].dtype == torch.bfloat16
    monkeypatch.setattr(encoder_matmul, "MIN_ONEDNN_WEIGHTS", 6 * 16 + 1)
    all_of(*problem(4, 6, 16))
    assert not called


def test_an_empty_batch_has_no_chunks(by_onednn):
    assert list(encoder_chunks(*problem(0, 6, 16))) == []


def test_a_chunk_has_a_row_at_least_and_its_precision_is_that_of_autocast():
    W_enc = torch.zeros(16, 6)
    assert chunk_of(W_enc, 16, 1) == (torch.float32, 1) and chunk_of(W_enc, 16, 640) == (torch.float32, 10)
    with torch.autocast("cpu", torch.bfloat16):
        assert chunk_of(W_enc, 16, 640) == (torch.bfloat16, 20)


@pytest.mark.parametrize(
    ("vendor", "capability", "narrow"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False),
     (None, "AVX512", False)],
)  # fmt: skip
def test_the_processor_decides(vendor, capability, narrow, monkeypatch):
    monkeypatch.setattr(encoder_matmul, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    for library in (torch.backends.mkl, torch.backends.mkldnn):
        monkeypatch.setattr(library, "is_available", lambda: True)
    assert mkl_is_narrow.__wrapped__() == narrow
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not mkl_is_narrow.__wrapped__()


def test_the_vendor_is_read_from_cpuinfo(tmp_path, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: x\n")
    assert cpu_vendor(tmp_path / "cpuinfo") == "AuthenticAMD" and cpu_vendor(tmp_path / "none") is None
    (tmp_path / "cpuinfo").write_text("processor\t: 0\n")
    assert cpu_vendor(tmp_path / "cpuinfo") is None
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    (tmp_path / "cpuinfo").write_text("vendor_id\t: x\n")
    assert cpu_vendor(tmp_path / "cpuinfo") is None
