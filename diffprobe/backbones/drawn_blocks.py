"""Draw the random weights of a network block by block: each is handed over as soon as it is made.

The weights are those of a network that is made whole, since blocks are made in the same order by the same generator.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def drawn_blocks(network: nn.Module, blocks: Sequence[str], made: Callable[[str, nn.Module], None]) -> Iterator[None]:
    """Build a network of the same configuration inside; `made` is called with the path of each block and the block.

    It may change the block in place. No block may hold another one of its class.

    Args:
        network: a network of the same configuration, on the meta device.
        blocks: paths of its blocks.
        made: called at the end of the construction of each block.
    """
    listed = set(blocks)
    kinds = {type(module) for path, module in network.named_modules() if path in listed}
    paths: dict[type[nn.Module], list[str | None]] = {kind: [] for kind in kinds}
    for path, module in network.named_modules():  # in the order in which they are made
        if type(module) in kinds:  # others of the class are counted too (the refiners of Lumina 2)
            paths[type(module)].append(path if path in listed else None)
    before: dict[type[Any], Any] = {kind: kind.__init__ for kind in paths}
    try:
        for kind, own in paths.items():
            setattr(kind, "__init__", _counted(kind, iter(own), made))  # noqa: B010 - a method is replaced
        yield
    finally:
        for kind, init in before.items():
            setattr(kind, "__init__", init)  # noqa: B010


def _counted(kind: type[Any], paths: Iterator[str | None], made: Callable[[str, nn.Module], None]) -> Any:
    init: Any = kind.__init__

    def build(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if type(self) is kind and (path := next(paths, None)) is not None:
            made(path, self)

    return build
