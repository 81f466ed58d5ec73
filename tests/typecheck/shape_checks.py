"""Shape checks of the test run: what jaxtyping annotations in diffprobe state is compared with each call.

`install` puts jaxtyping's import hook with beartype in front of everything that is imported from diffprobe later.
tests/conftest.py calls it in the test process and in each worker of pytest-xdist; Python processes that a test starts
install it by `sitecustomize.py` beside this file, whose folder conftest.py puts on PYTHONPATH.

Only functions and dataclasses with a jaxtyping annotation are wrapped, and only these annotations are checked: mypy
checks the other types, and tests may pass stand-ins for objects that are not tensors.
"""

import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar, get_args

SWITCH = "DIFFPROBE_SHAPE_CHECKS"
"""Environment variable: 0 turns the checks off (to time the tests without them, or a process that must load little)."""

_installed = False
Checkable = TypeVar("Checkable", bound=Callable[..., Any])


def install() -> None:
    """Check the tensor annotations of everything that is imported from diffprobe from here on."""
    global _installed
    if _installed or os.environ.get(SWITCH, "1") == "0":
        return
    _installed = True  # a worker of pytest-xdist comes here twice: by sitecustomize.py and by conftest.py
    import jaxtyping

    wrap = jaxtyping.jaxtyped

    def wrap_if_annotated(target: Any = None, **options: Any) -> Any:
        if target is None:
            return lambda found: wrap_if_annotated(found, **options)
        return wrap(target, **options) if any(map(is_shape, _annotations(target))) else target

    # The hook decorates every function and class with `jaxtyping.jaxtyped`; wrapping all costs a millisecond each.
    jaxtyping.jaxtyped = wrap_if_annotated
    jaxtyping.install_import_hook("diffprobe", "shape_checks.checked")


def checked(function: Checkable) -> Checkable:
    """Check the tensor annotations of one function on each call, and no other annotation."""
    from beartype import beartype

    function.__annotations__ = {
        name: annotation if is_shape(annotation) else Any for name, annotation in function.__annotations__.items()
    }
    return beartype(function)


def is_shape(annotation: Any) -> bool:
    """Whether an annotation is a jaxtyping type or contains one, as `dict[str, Float[Tensor, "n d"]]` does."""
    from jaxtyping import AbstractArray

    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    return any(map(is_shape, get_args(annotation)))


def _annotations(target: Any) -> list[Any]:
    return list(inspect.get_annotations(getattr(target, "fget", None) or getattr(target, "__func__", target)).values())
