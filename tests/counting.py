"""How often a function is traced, and how many programs are compiled."""

from collections.abc import Callable
from typing import Any

import jax


class Counted:
    """A function with the shapes of the images that it has been traced with.

    Compared by value, as linen's modules are, and without fields that could be looked into: code that
    is compiled for it need not trace it again.
    """

    __slots__ = ("function", "traces")

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.traces = function, list[tuple[int, ...]]()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counted) and self.function is other.function

    def __hash__(self) -> int:
        return hash(self.function)

    def __call__(self, *arguments: Any) -> Any:
        self.traces.append(arguments[-1].shape)
        return self.function(*arguments)


_compiled: list[str] = []


def _listen(event: str, seconds: float, **more: Any) -> None:
    if event.endswith("backend_compile_duration"):
        _compiled.append(more.get("fun_name", ""))


jax.monitoring.register_event_duration_secs_listener(_listen)


def num_compiled(name: str | None = None) -> int:
    """Programs that this process has compiled so far: all, or those of the function of this name."""
    return sum(name is None or one == f"jit({name})" for one in _compiled)
