"""The command line of an experiment script: options, presets and error messages."""

import argparse
import contextlib
import dataclasses
import os
import re
import shlex
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jaxrobust import checks, compilation, packages, reports
from jaxrobust.reports import reading
from jaxrobust.studies import cluster, ctrl_c, suite_names
from jaxrobust.studies.results import configuration

Settings = TypeVar("Settings")
Presets = Mapping[str, Mapping[str, Any]]
_PUBLISH = """
--publish FILE runs nothing: it writes the finished run's main sections to FILE, a page of Markdown.
"""
_FOR_USERS = (ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError)
_UNIONS = (typing.Union, types.UnionType)  # the origin of `int | None` is one of these


def run_script(
    main: Callable[[Settings], Any],
    settings_type: type[Settings],
    presets: Presets | None = None,
    *,
    published: Sequence[str] = (),
) -> None:
    """Reads the settings from the command line and runs `main` with them.

    With `published`, the command also takes `--publish FILE`. It then runs nothing, but writes these
    sections of the finished run's report to FILE, a page of Markdown.

    An error that the project itself raises (a wrong setting, a missing folder or package) is printed as
    one line on stderr, with exit code 2. Ctrl-C gives exit code 130. Any other error keeps its
    traceback.

    Where a setting is a float, the command line also takes a fraction, such as 8/255.

    If the settings have a field `processes: str | None`, and it is set, several processes run the
    script together (docs/scale.md).

    Args:
      main: A function that takes the settings.
      settings_type: A frozen dataclass, whose fields become options and whose docstring becomes their
        help. Check the settings in `main`, not in the dataclass: the command line would reword its
        errors.
      presets: {name: {field: value}}, as in `preset`. `--preset NAME` chooses a preset, and `--quick`
        chooses the one with the name "quick". Other options override the preset.
      published: The ids of the sections that `--publish` writes, as far as a run has them. The
        settings must then have `run` and `results_dir`, and the experiment the name of its folder.
    """
    try:
        with packages.extra("cli", "A command line"):
            import tyro

        with contextlib.suppress(RuntimeError):  # if jax is in use already, it keeps its devices
            compilation.use_every_core()
        compilation.keep_programs()
        compilation.keep_memory()
        module = sys.modules[main.__module__]
        name = getattr(module.__spec__, "name", "script").removesuffix(".__main__")
        fields = dataclasses.fields(settings_type)  # type: ignore[arg-type]
        needed = {f.name: tyro.MISSING for f in fields if _has_no_default(f)}
        page, arguments = _publishing(sys.argv[1:]) if published else (None, sys.argv[1:])
        chosen = _chosen(arguments, settings_type, presets or {})
        settings = tyro.cli(
            settings_type,
            prog=f"python -m {name}",
            description=f"{module.__doc__ or ''}{_PUBLISH if published else ''}",
            default=settings_type(**{**needed, **chosen}),
            args=arguments,
            registry=_with_fractions(tyro.constructors),
        )
        if page is not None:
            print(_publish(page, published, name, settings, presets or {}))
            return
        of_all = getattr(settings, "processes", None)
        with ctrl_c.remembered(), cluster.joined(of_all, _is_ours):
            main(settings)
    except KeyboardInterrupt as pressed:
        words = str(pressed) or ctrl_c.WORDS
        print(f"\n{words}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: if XLA was interrupted while compiling, it crashes when the interpreter ends.
        os._exit(130)
    except _FOR_USERS as error:
        if not _is_ours(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _with_fractions(constructors: Any) -> Any:
    """Returns rules by which a float may be written as a fraction, such as 8/255.

    Args:
      constructors: The module tyro.constructors.
    """
    registry = constructors.ConstructorRegistry()

    @registry.primitive_rule
    def _(kind: Any) -> Any:
        if kind.type is not float:
            return None
        return constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="NUMBER",
            instance_from_str=lambda words: suite_names.number("NUMBER", words[0]),
            is_instance=lambda value: isinstance(value, float | int),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _publishing(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Splits the arguments into the page to publish, if any, and all others."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--publish", type=Path)
    known, others = parser.parse_known_args(list(arguments))
    return known.publish, others


def _publish(
    page: Path, published: Sequence[str], name: str, settings: Any, presets: Presets
) -> Path:
    """Writes the sections `published` of the finished run that the settings name to a page.

    Sections that this run does not have, because its settings leave something out, are left out.
    """
    result = settings.results_dir / name.split(".")[-1] / settings.run / "result.json"
    command = ["python", "-m", name, *_options(result, settings, presets)]
    command += ["--run", settings.run] if settings.run != "default" else []
    commands = [command, [*command, "--publish", page.name]]
    blocks = reading.read_result(result)["blocks"]
    headings = {block.get("id") for block in blocks if block["kind"] == "heading"}
    present = [section for section in published if section in headings]
    if absent := [section for section in published if section not in headings]:
        print(
            f"Left out, because the run does not have them: {', '.join(absent)}.", file=sys.stderr
        )
    if not present:
        raise ValueError(
            f"{result} must have one of the sections {', '.join(published)} to publish."
        )
    return reports.write_page(result, page, present, [shlex.join(words) for words in commands])


def _options(result: Path, settings: Any, presets: Presets) -> list[str]:
    """Returns the options that made a run: those in which its settings differ from its preset's.

    Paths are written as DIR, because they differ from machine to machine.

    Raises:
      ValueError: The run was made by code with other settings, so today's command would not repeat it.
    """
    kept, settings_type = reading.read_result(result)["config"], type(settings)
    if others := sorted(kept.keys() ^ configuration(settings).keys()):
        raise ValueError(
            f"{result} is of code with other settings ({', '.join(others)}), so today's command would "
            "not repeat the run. Publish it with the code that made it, or run the study again."
        )
    name = str("quick" if kept.get("quick") else kept.get("preset"))
    needed = {f.name: None for f in dataclasses.fields(settings_type) if _has_no_default(f)}
    usual = configuration(settings_type(**{**needed, **presets.get(name, {})}))
    is_said = name in presets and name != getattr(settings_type, "preset", None)
    said, kinds = ["--preset", name] if is_said else [], typing.get_type_hints(settings_type)
    for field, value in kept.items():
        if field in ("preset", "quick", "download") or value == usual[field]:
            continue
        option = field.replace("_", "-")
        if isinstance(value, bool):
            said.append(f"--{option}" if value else f"--no-{option}")
        elif Path in (kinds[field], *typing.get_args(kinds[field])):
            said += [f"--{option}", "DIR"] if value is not None else []
        else:
            said += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return said


def preset(settings_type: type[Settings], presets: Presets, name: str, /, **given: Any) -> Settings:
    """Makes the settings of a preset.

    Args:
      settings_type: A dataclass.
      presets: {name: {field: value}}, the values that differ from the defaults of the fields.
      name: The preset's name.
      **given: Values of fields, which override the preset's.
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
      settings: A dataclass. A field of type Literal must have one of the literal's values, and a field
        of type int must be at least 1. If the type allows None, None passes.
      least: {field: bound}, for integers whose lower bound is not 1.
      **choices: For each field that holds a tuple, the values that the tuple may have. It must have at
        least one value, and none twice. None passes.

    Raises:
      TypeError: A field of type int is not an integer.
      ValueError: A value is not allowed; the message names the field.
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
            raise ValueError(f"`{name}` must have at least one value and none twice, got {values}.")


def _chosen(
    arguments: Sequence[str], settings_type: type[Any], presets: Presets
) -> Mapping[str, Any]:
    """Returns the preset that the arguments name; {} if they name none or an unknown one."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    parser.add_argument("--quick", action="store_true")
    known, _ = parser.parse_known_args(list(arguments))
    if known.quick and known.preset in presets and known.preset != "quick":
        raise ValueError(f"--quick and --preset {known.preset} are two presets: give one of them.")
    chosen = "quick" if known.quick else known.preset or getattr(settings_type, "preset", None)
    return presets.get(str(chosen), {})


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _is_ours(error: Exception) -> bool:
    """Says whether the project itself raised the error, so that its message is for the user."""
    # XLA's errors, such as "UNKNOWN: Gloo AllGather failed", have no frame of their own.
    if not isinstance(error, _FOR_USERS) or re.match(r"[A-Z_]+: ", str(error)):
        return False
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__", "").split(".")[0] in (
        "jaxrobust",
        "experiments",
        "__main__",
    )
