"""The command line of an experiment script: options, presets, and what errors look like."""

import argparse
import contextlib
import dataclasses
import os
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jaxrobust import checks, compilation, packages
from jaxrobust.studies import ctrl_c

Settings = TypeVar("Settings")
Presets = Mapping[str, Mapping[str, Any]]
_UNIONS = (typing.Union, types.UnionType)  # `int | None` is the one or the other


def run_script(
    main: Callable[[Settings], Any], settings_type: type[Settings], presets: Presets | None = None
) -> None:
    """Reads the settings from the command line and runs `main` with them.

    What the project itself complains of (a wrong setting, a missing folder or package) is one line on
    stderr and exit code 2; Ctrl-C is exit code 130; anything else keeps its traceback.

    Args:
      main: Takes the settings.
      settings_type: A frozen dataclass; its fields become options, its docstring their help. It checks
        nothing by itself: the command line would frame the words.
      presets: As in `preset`. `--preset NAME` chooses one of them, `--quick` the one of that name, and
        what the command line says besides goes before it.
    """
    try:
        with packages.extra("cli", "A command line"):
            import tyro

        with contextlib.suppress(RuntimeError):  # jax is in use already: with the devices it has
            compilation.use_every_core()
        module = sys.modules[main.__module__]
        name = getattr(module.__spec__, "name", "script").removesuffix(".__main__")
        fields = dataclasses.fields(settings_type)  # type: ignore[arg-type]
        needed = {f.name: tyro.MISSING for f in fields if _has_no_default(f)}
        chosen = _chosen(sys.argv[1:], settings_type, presets or {})
        settings = tyro.cli(
            settings_type,
            prog=f"python -m {name}",
            description=module.__doc__,
            default=settings_type(**{**needed, **chosen}),
        )
        with ctrl_c.remembered():
            main(settings)
    except KeyboardInterrupt as pressed:
        words = str(pressed) or "Interrupted. To go on, run the same command again."
        print(f"\n{words}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: interrupted while it compiles, XLA crashes as the interpreter takes it down.
        os._exit(130)
    except (ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        if not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def preset(settings_type: type[Settings], presets: Presets, name: str, /, **given: Any) -> Settings:
    """The settings of a preset.

    Args:
      settings_type: A dataclass.
      presets: {name: {field: value}}, what differs from the defaults of the fields.
      name: One of them.
      **given: Fields that go before the preset's.
    """
    fields = {field.name for field in dataclasses.fields(settings_type)}  # type: ignore[arg-type]
    named = {"preset": name, "quick": name == "quick"}
    own = {field: value for field, value in named.items() if field in fields}
    return settings_type(**{**own, **presets[name], **given})


def check_settings(
    settings: Any, least: Mapping[str, int] | None = None, /, **choices: Iterable[Any]
) -> None:
    """Checks settings by the types of their fields.

    Args:
      settings: A dataclass. A field of type Literal must be one of its values, an integer at least 1.
        Where the type allows None, None passes.
      least: For integers, by their fields, another bound than 1.
      **choices: For tuples, by their fields, the values that may be in them: at least one, and none
        twice; None passes.

    Raises:
      TypeError: No integer.
      ValueError: A value that is not allowed; the message names the field.
    """
    for name, kind in typing.get_type_hints(type(settings)).items():
        value, is_union = getattr(settings, name), typing.get_origin(kind) in _UNIONS
        kinds = typing.get_args(kind) if is_union else (kind,)
        if value is None and types.NoneType in kinds:
            continue
        for one in kinds:
            if typing.get_origin(one) is typing.Literal:
                checks.one_of(name, value, typing.get_args(one))
            elif one is int:
                checks.integer(name, value, minimum=(least or {}).get(name, 1))
    for name, allowed in choices.items():
        values = getattr(settings, name)
        for value in values or ():
            checks.one_of(name, value, tuple(allowed))
        if values is not None and (not values or len(set(values)) < len(values)):
            raise ValueError(f"`{name}` must be at least one and none twice, got {values}.")


def _chosen(
    arguments: Sequence[str], settings_type: type[Any], presets: Presets
) -> Mapping[str, Any]:
    """The preset that the arguments name; where they name none that there is, no change."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    parser.add_argument("--quick", action="store_true")
    known, _ = parser.parse_known_args(list(arguments))
    if known.quick and known.preset not in (None, "quick"):
        raise ValueError(f"--quick and --preset {known.preset} are two presets: give one of them.")
    chosen = "quick" if known.quick else known.preset or getattr(settings_type, "preset", None)
    return presets.get(str(chosen), {})


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _is_ours(error: Exception) -> bool:
    """Whether the project raised the error itself, in words for its user."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").split(".")[0] in (
        "jaxrobust",
        "experiments",
        "__main__",
    )
