"""The facts that a study measured: one tidy table, and the outcomes image by image."""

import csv
import dataclasses
import io
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust import files, packages
from jaxrobust.evaluation import mean_interval, median_interval, rate

FACTS, OUTCOMES = "facts.csv", "outcomes.npz"
_FIGURES = ("value", "n", "count", "low", "high", "p", "deviation")
_DIGITS = 12  # digits of a number that is a key, so that 8/255 from a table equals a computed 8/255
ANY: Any = object()
"""The value of a key in `Facts.where` that leaves the key free."""


@dataclasses.dataclass(frozen=True, eq=False)
class Fact:
    """A figure, with the keys that say what it belongs to.

    Attributes:
      measure: What was measured, such as "accuracy".
      keys: What it belongs to, as names and raw values, such as {"network": "resnet50",
        "sparsity": 0.3}.
      value: The figure; shares are fractions. None if it could not be measured.
      n: The number of images, seeds or networks that the figure is computed from.
      count: The numerator of a share, whose denominator is n.
      low: The lower end of its 95 % interval.
      high: The upper end of its 95 % interval.
      p: The p-value of the test that gave the figure.
      deviation: The standard deviation.
      outcomes: [n], one for each image: bool for a share, float for anything else.
    """

    measure: str
    keys: dict[str, Any]
    value: float | None = None
    n: int | None = None
    count: int | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    deviation: float | None = None
    outcomes: np.ndarray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", keys_of(self.keys))
        for name in _FIGURES:
            number = _number(f"`{name}` of {self.measure!r}", getattr(self, name))
            object.__setattr__(self, name, number)
        if self.outcomes is not None and self.outcomes.dtype.kind not in "bf":
            raise TypeError(
                f"`outcomes` of {self.measure!r} must be bool or float, got {self.outcomes.dtype}."
            )

    @property
    def direction(self) -> int:
        """1 if the whole interval is above 0, -1 if it is below 0, otherwise 0."""
        if self.low is None or self.high is None:
            return 0
        return int(self.low > 0) - int(self.high < 0)

    @property
    def cell(self) -> Any:
        """The fact as a cell of a table: a rate, or a number with its interval or deviation, if any."""
        if self.count is not None:
            figures = {"count": self.count, "n": self.n, "rate": self.value}
            return figures | {"low": self.low, "high": self.high}
        if self.low is not None and self.high is not None:
            return {"value": self.value, "low": self.low, "high": self.high}
        if self.deviation is not None:
            return {"value": self.value, "deviation": self.deviation}
        return self.value


class Facts:
    """The facts of one run, in the order in which they were added.

    Example:
      >>> facts = Facts()
      >>> _ = facts.add("accuracy", network="mlp", outcomes=np.array([True, False, True, True]))
      >>> _ = facts.add("accuracy", network="mlp", attack="PGD", value=0.25, n=4, count=1)
      >>> facts.of("accuracy", network="mlp").value
      0.75
      >>> [fact.value for fact in facts.where("accuracy", network=ANY, attack="PGD")]
      [0.25]
    """

    def __init__(self) -> None:
        self._facts: dict[Any, Fact] = {}
        self._of_measure: dict[str, list[Fact]] = {}

    def __iter__(self) -> Iterator[Fact]:
        return iter(self._facts.values())

    def __len__(self) -> int:
        return len(self._facts)

    def add(self, measure: str, of: Any = None, /, **figures_and_keys: Any) -> Fact:
        """Adds a fact.

        Args:
          measure: What was measured.
          of: The keys: a mapping, or a dataclass whose fields are the keys. Keys with the value None
            are left out.
          **figures_and_keys: Figures (`value`, `n`, `count`, `low`, `high`, `p`, `deviation`,
            `outcomes`) and further keys. If the outcomes are bool [N], count, n, value and the 95 %
            Wilson interval are computed from them.

        Returns:
          The fact.

        Raises:
          TypeError: A figure is not a number, or the outcomes are neither bool nor float.
          ValueError: There is already a fact with this measure and these keys, or a key has the name of
            a figure.
        """
        given = {name: figures_and_keys.pop(name, None) for name in (*_FIGURES, "outcomes")}
        outcomes = given["outcomes"]
        if outcomes is not None:
            outcomes = given["outcomes"] = np.asarray(outcomes)
            if outcomes.dtype == bool:
                given |= _parts_of(rate(int(outcomes.sum()), len(outcomes)))
        return self._put(Fact(measure, keys_of(of) | keys_of(figures_and_keys), **given))

    def add_rate(self, measure: str, of: Any, counted: Mapping[str, Any], /, **keys: Any) -> Fact:
        """Adds a rate, as `evaluation.rate` returns it."""
        return self.add(measure, of, **_parts_of(counted), **keys)

    def add_mean(self, measure: str, of: Any, values: Any, /, **keys: Any) -> None:
        """Adds the mean of the finite values among [N], with the interval of `mean_interval`.

        If no value is finite, nothing is added.
        """
        values = np.asarray(values, float)
        values = values[np.isfinite(values)]
        if len(values):
            found = mean_interval(values)
            ends = {"low": found["low"], "high": found["high"]}
            self.add(measure, of, value=found["mean"], n=len(values), **ends, **keys)

    def add_median(self, measure: str, of: Any, values: Any, /, **keys: Any) -> Fact:
        """Adds the median of [N] values with its interval, as `evaluation.median_interval` finds them.

        An infinite value is one that is only known to be larger than all others. If half of the values
        are infinite, or there are no values, the median is None; an end of the interval can also be
        None for this reason.
        """
        if not len(values):
            return self.add(measure, of, n=0, **keys)
        found = median_interval(values)
        parts = {name: found[name] for name in ("n", "low", "high")}
        return self.add(measure, of, value=found["median"], **parts, **keys)

    def extend(self, facts: Iterable[Fact]) -> list[Fact]:
        """Adds the facts that a function of `studies.comparison` made, and returns them."""
        return [self._put(fact) for fact in facts]

    def find(self, measure: str, of: Any = None, /, **keys: Any) -> Fact | None:
        """Returns the fact with exactly these keys, or None.

        Args:
          measure: What was measured.
          of: Keys, as in `add`.
          **keys: Further keys, which override those of `of`. The value None removes a key.
        """
        return self._facts.get(_name(measure, _joined(of, keys)))

    def of(self, measure: str, of: Any = None, /, **keys: Any) -> Fact:
        """Returns the fact with exactly these keys, which are given as for `find`.

        Raises:
          ValueError: There is no such fact; the message lists similar ones.
        """
        found = self.find(measure, of, **keys)
        if found is not None:
            return found
        wanted = _joined(of, keys)
        if measure not in self._of_measure:
            known = ", ".join(self._of_measure) or "none"
            raise ValueError(f"There is no fact {measure!r}; the measures are {known}.")
        same = sorted(
            self._of_measure[measure], key=lambda fact: len(fact.keys.items() ^ wanted.items())
        )
        near = "; ".join(_words(fact.keys) for fact in same[:3])
        raise ValueError(f"There is no fact {measure!r} of {_words(wanted)}. The nearest: {near}.")

    def where(self, measure: str, of: Any = None, /, **keys: Any) -> list[Fact]:
        """Returns the facts that have these keys and no others.

        Args:
          measure: What was measured.
          of: Keys, as in `add`.
          **keys: Further keys, which override those of `of`. ANY allows every value of a key; a list,
            tuple or set allows each of its values; None removes a key.

        Returns:
          The facts, in the order in which they were added; [] if there are none.

        Raises:
          ValueError: All facts that fit have further keys. Give each of them a value, or ANY.

        Example:
          >>> facts = Facts()
          >>> _ = facts.add("accuracy", network="mlp", seed=0, value=0.5)
          >>> [fact.value for fact in facts.where("accuracy", network="mlp", seed=ANY)]
          [0.5]
        """
        kept = {name: value for name, value in keys_of(of).items() if name not in keys}
        wanted = kept | {name: value for name, value in keys.items() if value is not None}
        allowed = {name: _allowed(value) for name, value in wanted.items()}
        fitting = [f for f in self._of_measure.get(measure, ()) if _fits(f.keys, allowed)]
        found = [fact for fact in fitting if fact.keys.keys() == wanted.keys()]
        if fitting and not found:
            others = ", ".join(sorted({n for f in fitting for n in f.keys} - wanted.keys()))
            raise ValueError(
                f"The facts {measure!r} of {_words(wanted)} have further keys: {others}. Give each of "
                "them a value, or ANY."
            )
        return found

    def read(
        self,
        path: str | os.PathLike[str],
        *,
        only: Mapping[str, Any] | None = None,
        **keys: Any,
    ) -> list[Fact]:
        """Adds the facts of a CSV file, such as figures that a paper published.

        Args:
          path: The file, with the column `measure`, columns for figures, and a column for each key. An
            empty cell gives neither a key nor a figure.
          only: {key: value}, the rows to read, such as {"data": "cifar10"}. The facts do not get these
            keys.
          **keys: Further keys of all facts, such as source="003".

        Returns:
          The facts.

        Raises:
          TypeError: A figure is not a number; the message names the line.
          ValueError: The file lacks the column `measure` or `value`, a row has no measure, has too many
            cells or repeats a fact (the message names the line), or no row fits `only`.
        """
        only = keys_of(only)
        with Path(path).open(
            encoding="utf-8-sig", newline=""
        ) as file:  # "-sig", because spreadsheets write a byte order mark
            reader = csv.DictReader(file)
            rows = list(reader)
        if not {"measure", "value"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{path} must have the columns `measure` and `value`.")
        # A row that cannot be a fact is an error: half a table would mislead.
        found = []
        for number, row in enumerate(rows, start=2):
            try:
                if None in row:
                    raise ValueError("there are more cells than columns.")
                cells = {name: _parsed(text) for name, text in row.items() if text}
                measure = cells.pop("measure", None)
                if measure is None:
                    raise ValueError("`measure` is missing.")
                if all(cells.get(name) == value for name, value in only.items()):
                    cells = {name: value for name, value in cells.items() if name not in only}
                    found.append(self.add(str(measure), **(cells | keys)))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{path}, line {number}: {error}") from error
        if not found:
            raise ValueError(f"{path} has no facts of {_words(only)}.")
        return found

    def save(self, folder: Path) -> None:
        """Writes facts.csv and outcomes.npz into a folder."""
        names = list(dict.fromkeys(key for fact in self for key in fact.keys))
        arrays: dict[str, Any] = {}
        rows = []
        for number, fact in enumerate(self):
            kept = ""
            if fact.outcomes is not None:
                kept = str(number)
                arrays[kept] = fact.outcomes
            figures = [getattr(fact, name) for name in _FIGURES]
            rows.append([fact.measure, *(fact.keys.get(n) for n in names), *figures, kept])
        text = io.StringIO()
        heading = ["measure", *names, *_FIGURES, "outcomes"]
        csv.writer(text, lineterminator="\n").writerows([heading, *rows])
        files.replace_text(folder / FACTS, text.getvalue())
        with files.replace(folder / OUTCOMES) as file:
            np.savez_compressed(file, **arrays)

    def _put(self, fact: Fact) -> Fact:
        name = _name(fact.measure, fact.keys)
        if name in self._facts:
            raise ValueError(f"There is already a fact {fact.measure!r} of {_words(fact.keys)}.")
        self._facts[name] = fact
        self._of_measure.setdefault(fact.measure, []).append(fact)
        return fact


def load_facts(folder: str | os.PathLike[str]) -> Any:
    """Loads the facts of a finished run as a pandas DataFrame, with one row for each fact.

    Args:
      folder: The run's folder, results/<experiment>/<run>.

    Returns:
      The DataFrame. Its columns are `measure`, one for each key, `value`, `n`, `count`, `low`, `high`,
      `p`, `deviation`, and `outcomes`, the number of the fact's array in `load_outcomes`, if it has
      one.

    Raises:
      FileNotFoundError: The folder has no facts.
      ModuleNotFoundError: pandas is not installed: `pip install 'jaxrobust[reports]'`.
    """
    path = _existing(folder, FACTS)
    with packages.extra("reports", "A table of facts"):
        import pandas
    whole = {"n": "Int64", "count": "Int64", "outcomes": "Int64", "source": "string"}
    return pandas.read_csv(path, dtype=whole, keep_default_na=False, na_values=[""])


def load_outcomes(folder: str | os.PathLike[str]) -> dict[int, np.ndarray]:
    """Loads the outcomes of a finished run, image by image.

    Args:
      folder: The run's folder, results/<experiment>/<run>.

    Returns:
      {number in the column `outcomes` of `load_facts`: bool or float [N]}.

    Raises:
      FileNotFoundError: The folder has no outcomes.
    """
    with np.load(_existing(folder, OUTCOMES), allow_pickle=False) as archive:
        return {int(name): archive[name] for name in archive}


def keys_of(of: Any) -> dict[str, Any]:
    """Returns a mapping's items or a dataclass's fields as keys, and leaves out values of None."""
    if of is None:
        return {}
    if dataclasses.is_dataclass(of):
        of = {field.name: getattr(of, field.name) for field in dataclasses.fields(of)}
    if taken := {*_FIGURES, "measure", "outcomes"} & {*of}:
        raise ValueError(
            f"A key cannot be called {sorted(taken)[0]!r}: a column of facts.csv has this name."
        )
    return {name: _plain(value) for name, value in of.items() if value is not None}


def _parts_of(counted: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the figures of a rate."""
    parts = {name: counted[name] for name in ("n", "count", "low", "high")}
    return parts | {"value": counted["rate"]}


def _joined(of: Any, keys: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in keys_of(of).items() if name not in keys}
    return kept | keys_of(keys)


def _name(measure: str, keys: Mapping[str, Any]) -> Any:
    return measure, frozenset(keys.items())


def _allowed(value: Any) -> Any:
    """Returns the values that a key may have: ANY, or a set."""
    if value is ANY:
        return ANY
    several = isinstance(value, list | tuple | set | frozenset)
    return {_plain(one) for one in (value if several else (value,))}


def _fits(keys: Mapping[str, Any], allowed: Mapping[str, Any]) -> bool:
    return all(
        name in keys and (values is ANY or keys[name] in values) for name, values in allowed.items()
    )


def _plain(value: Any) -> Any:
    """Converts a key's value: rounds a float to 12 digits, and makes numpy's scalars Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int | float):
        raise TypeError(f"A key of a fact must be text, a number or a bool, got {value!r}.")
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _number(name: str, value: Any) -> Any:
    """Converts a figure to a number of Python; None if it is not finite."""
    if np.ndim(value) == 0 and hasattr(value, "item"):  # a scalar of numpy or jax
        value = value.item()
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError(f"{name} must be a number or None, got {value!r}.")
    return value if value is None or math.isfinite(value) else None


def _parsed(text: str) -> Any:
    if text in ("True", "False"):
        return text == "True"
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.I) else text


def _words(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in keys.items()) or "nothing in particular"


def _existing(folder: str | os.PathLike[str], name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: name the folder of a finished run, results/<experiment>/<run>."
        )
    return path
