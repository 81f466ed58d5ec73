import pytest

from diffprobe.core.errors import SchemaError, WeightsMismatch
from diffprobe.core.foreign import naming


def test_errors_of_libraries_name_the_file_and_ours_pass() -> None:
    with pytest.raises(WeightsMismatch, match="'x.json' is not a network: ZeroDivisionError"):
        with naming("x.json", "a network"):
            raise ZeroDivisionError
    with pytest.raises(SchemaError, match="'x.json' is not a probe: KeyError: 'a'"):
        with naming("x.json", "a probe", error=SchemaError):
            raise KeyError("a")
    with pytest.raises(SchemaError, match="ours"), naming("x.json", "a network"):
        raise SchemaError("ours")


def test_interruptions_and_exhausted_memory_pass_and_panics_do_not() -> None:
    for passing in (KeyboardInterrupt, SystemExit, MemoryError):
        with pytest.raises(passing), naming("x.json", "a network"):
            raise passing

    class PanicException(BaseException):  # as pyo3 raises it
        pass

    with pytest.raises(WeightsMismatch, match="PanicException: of Rust"), naming("x.json", "a network"):
        raise PanicException("of Rust")
