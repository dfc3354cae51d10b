"""Facts: what is kept, found, refused, saved and compared."""

import csv
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrobust import evaluation, studies
from jaxrobust.studies import ANY, Facts, comparison, records


@dataclasses.dataclass(frozen=True)
class Variant:
    network: str
    sparsity: float = 0.0
    seed: int | None = None

    @property
    def words(self):
        return f"{self.network} at {self.sparsity:g}"


RIGHT = np.array([True, True, False, True])


def test_outcomes_give_the_share_and_its_interval():
    fact = Facts().add("accuracy", Variant("mlp"), attack="PGD", outcomes=RIGHT)
    expected = evaluation.rate(3, 4)
    assert fact.cell == expected and fact.n == 4
    assert fact.keys == {"network": "mlp", "sparsity": 0.0, "attack": "PGD"}


@pytest.mark.parametrize(
    ("figures", "cell"),
    [
        ({"value": 2.0}, 2.0),
        ({"value": np.float32(2)}, 2.0),
        ({"value": 2.0, "low": 1.0, "high": 3.0}, {"value": 2.0, "low": 1.0, "high": 3.0}),
        ({"value": 2.0, "deviation": 0.5}, {"value": 2.0, "deviation": 0.5}),
        ({"value": float("nan")}, None),
        ({"n": 0}, None),
    ],
)
def test_a_fact_is_a_cell(figures, cell):
    assert Facts().add("norm", **figures).cell == cell


def test_a_fact_is_found_by_exactly_its_keys():
    facts = Facts()
    facts.add("accuracy", Variant("mlp"), value=0.5)
    facts.add("accuracy", Variant("mlp"), attack="PGD", epsilon=8 / 255, value=0.25)
    assert facts.of("accuracy", Variant("mlp")).value == 0.5
    computed = np.linspace(0, 16 / 255, 3)[1]  # not 8/255 to the last digit everywhere
    assert facts.of("accuracy", Variant("mlp"), attack="PGD", epsilon=computed).value == 0.25
    assert facts.of("accuracy", {"network": "mlp"}, sparsity=0).value == 0.5
    assert facts.of("accuracy", Variant("mlp", 0.5), sparsity=0.0).value == 0.5
    assert facts.find("accuracy", Variant("cnn")) is None


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda f: f.of("loss", Variant("mlp")), r"no fact 'loss'; the measures are accuracy"),
        (lambda f: f.of("accuracy", Variant("cnn")), r"network='cnn'.*nearest: network='mlp'"),
        (lambda f: f.where("accuracy", network="mlp"), "have further keys: sparsity. Give"),
        (lambda f: f.add("accuracy", Variant("mlp"), value=1.0), "There is already a fact"),
    ],
)
def test_what_is_missing_or_twice_is_named(ask, words):
    facts = Facts()
    facts.add("accuracy", Variant("mlp"), value=0.5)
    with pytest.raises(ValueError, match=words):
        ask(facts)


def test_a_key_is_a_plain_value():
    with pytest.raises(TypeError, match="must be text, a number or a bool, got"):
        Facts().add("accuracy", attack=("PGD", 1), value=1.0)


def test_where_asks_for_these_keys_and_no_others():
    facts = Facts()
    for sparsity in (0.1, 0.2, 0.3):
        facts.add("accuracy", Variant("mlp", sparsity), value=sparsity)
    facts.add("accuracy", Variant("mlp", 0.1), attack="PGD", value=0.0)

    def found(**keys):
        return [fact.value for fact in facts.where("accuracy", **keys)]

    assert found(network="mlp", sparsity=ANY) == [0.1, 0.2, 0.3]
    assert found(network="mlp", sparsity=(0.2, 0.3)) == [0.2, 0.3]
    assert found(network="mlp", sparsity=ANY, attack=ANY) == [0.0]
    assert found(network="cnn", sparsity=ANY) == []


def test_published_figures_are_facts(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(
        "measure,data,network,sparsity,value\n"
        "accuracy,cifar10,vgg19,0.1,0.822\naccuracy,cifar100,vgg19,0.1,0.5\n"
        "bytes,cifar10,vgg19,,80\n"
    )
    facts = Facts()
    facts.read(path, only={"data": "cifar10"}, source="003")
    assert facts.of("accuracy", network="vgg19", sparsity=0.1, source="003").value == 0.822
    assert facts.of("bytes", network="vgg19", source="003").value == 80
    assert len(facts) == 2
    path.write_text("measure,value\n,1\n")
    with pytest.raises(ValueError, match=r"published.csv, line 2: `measure` is missing"):
        facts.read(path)


def test_facts_are_saved_as_a_table_with_outcomes_beside_it(tmp_path):
    facts = Facts()
    facts.add("bytes", Variant("mlp"), value=1234)
    facts.add("accuracy", Variant("mlp", 1 / 3), outcomes=RIGHT)
    facts.save(tmp_path)
    with (tmp_path / "facts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["measure"] for row in rows] == ["bytes", "accuracy"]
    assert rows[0]["value"] == "1234" and rows[0]["n"] == "" and rows[0]["outcomes"] == ""
    assert rows[1]["count"] == "3" and rows[1]["sparsity"] == "0.333333333333"
    np.testing.assert_array_equal(studies.load_outcomes(tmp_path)[int(rows[1]["outcomes"])], RIGHT)
    again = Facts()
    with pytest.raises(FileNotFoundError, match="name the folder of a finished run"):
        studies.load_facts(tmp_path / "elsewhere")
    assert not len(again)


def test_pandas_reads_them(tmp_path):
    facts = Facts()
    facts.add("accuracy", source="003", seed=1, value=0.25)
    facts.add("accuracy", network="None", outcomes=RIGHT)
    facts.save(tmp_path)
    frame = studies.load_facts(tmp_path)
    assert frame.loc[0, "source"] == "003" and frame.loc[1, "network"] == "None"
    assert frame.loc[1, "value"] == 0.75 and frame.loc[1, "n"] == 4


def of_seeds(facts, network, values, **keys):
    for seed, value in enumerate(values):
        facts.add("accuracy", Variant(network, seed=seed), value=value, **keys)


def test_over_images_is_mcnemar_with_holm():
    facts, generator = Facts(), np.random.default_rng(0)
    outcomes = {s: generator.random(200) < 0.9 - s for s in (0.0, 0.1, 0.3)}
    for sparsity, right in outcomes.items():
        facts.add("accuracy", Variant("mlp", sparsity), outcomes=right)

    def control(keys):
        return None if keys["sparsity"] == 0 else keys | {"sparsity": 0.0}

    found = comparison.over_images(facts, list(facts), control, "gap")
    raw = [evaluation.mcnemar(outcomes[s], outcomes[0.0])["p_value"] for s in (0.1, 0.3)]
    assert [fact.p for fact in found] == evaluation.holm(raw)
    expected = evaluation.paired_difference(outcomes[0.3], outcomes[0.0])
    assert (found[1].value, found[1].low, found[1].n) == (
        expected["difference"],
        expected["low"],
        200,
    )
    uncorrected = comparison.over_images(facts, list(facts), control, "gap", correct=False)
    assert [fact.p for fact in uncorrected] == raw
    facts.extend(found)
    assert facts.of("gap", Variant("mlp", 0.3)).direction == -1


def test_over_images_counts_the_images_that_count_for_both():
    facts = Facts()
    facts.add("robust", Variant("mlp"), outcomes=np.array([True, False, True, False]))
    facts.add("robust", Variant("mlp", 0.5), outcomes=np.array([False, False, True, True]))
    masks = {0.0: np.array([True, True, False, False]), 0.5: np.array([True, False, True, True])}

    def gap(masks):
        return comparison.over_images(
            facts,
            [facts.of("robust", Variant("mlp", 0.5))],
            lambda keys: keys | {"sparsity": 0.0},
            "gap",
            among=lambda keys: masks[keys["sparsity"]],
        )[0]

    assert (gap(masks).n, gap(masks).value) == (1, -1.0)
    nothing = gap({0.0: ~masks[0.5], 0.5: masks[0.5]})
    assert nothing.n == 0 and nothing.value is None and nothing.p is None


def test_the_same_images_or_an_error():
    facts = Facts()
    facts.add("right", network="a", outcomes=np.ones(3, bool))
    facts.add("right", network="b", outcomes=np.ones(4, bool))
    facts.add("right", network="c", value=1.0)
    for other, words in (("b", "the same images, got 3.* and 4"), ("c", "has no outcomes")):
        with pytest.raises(ValueError, match=words):
            comparison.over_images(
                facts,
                [facts.of("right", network="a")],
                lambda keys, other=other: keys | {"network": other},
                "gap",
            )


def test_over_seeds_is_the_paired_t_test():
    facts = Facts()
    of_seeds(facts, "dense", (0.8, 0.82, 0.85))
    of_seeds(facts, "pruned", (0.7, 0.75, 0.74))
    measured = facts.where("accuracy", network="pruned", sparsity=ANY, seed=ANY)
    (gap,) = comparison.over_seeds(facts, measured, lambda k: k | {"network": "dense"}, "gap")
    expected = evaluation.paired_mean_difference([0.7, 0.75, 0.74], [0.8, 0.82, 0.85])
    assert gap.keys == {"network": "pruned", "sparsity": 0.0} and gap.n == 3
    assert (gap.value, gap.low, gap.p) == (expected["mean"], expected["low"], expected["p_value"])


def test_one_seed_has_a_difference_and_no_interval():
    facts = Facts()
    of_seeds(facts, "dense", (0.8,))
    of_seeds(facts, "pruned", (0.75,))
    measured = facts.where("accuracy", network="pruned", sparsity=ANY, seed=ANY)
    (gap,) = comparison.over_seeds(facts, measured, lambda k: k | {"network": "dense"}, "gap")
    assert gap.value == pytest.approx(-0.05) and gap.low is None and gap.p is None and gap.n == 1


def test_means_and_differences_follow_one_another():
    facts = Facts()
    for network, shift in (("a", 0.0), ("b", 0.1), ("c", 0.3)):
        of_seeds(facts, network, (0.5, 0.7))
        for criterion, gain in (("l1", shift), ("l2", shift + 0.2)):
            facts.add("accuracy", Variant(network), criterion=criterion, value=0.6 + gain)
    controls = facts.where("accuracy", network=ANY, sparsity=ANY, seed=ANY)
    facts.extend(comparison.means(controls, "seed", "control"))
    criteria = facts.where("accuracy", network=ANY, sparsity=ANY, criterion=ANY)
    facts.extend(comparison.means(criteria, "criterion", "pruned"))
    gaps = [
        dataclasses.replace(fact, value=fact.value - facts.of("control", fact.keys).value)
        for fact in facts.where("pruned", network=ANY, sparsity=ANY)
    ]
    assert [gap.value for gap in gaps] == pytest.approx([0.1, 0.2, 0.4])
    (mean,) = comparison.means(gaps, "network", "gain", fewest=3)
    expected = evaluation.mean_interval([gap.value for gap in gaps])
    assert (mean.value, mean.low, mean.n) == (expected["mean"], expected["low"], 3)
    (mean,) = comparison.means(gaps, "network", "gain", fewest=4)
    assert mean.low is None and mean.value == expected["mean"]
    less = comparison.less(facts, criteria, lambda k: k | {"criterion": "l1"}, "to l1")
    assert [fact.value for fact in less] == pytest.approx([0, 0.2] * 3)


def test_means_of_shares_are_shares():
    facts = Facts()
    for seed, count in ((0, 1), (1, 5)):
        facts.add("accuracy", Variant("a", seed=seed), value=count / 10, count=count, n=10)
    right = facts.add("accuracy", Variant("b", seed=0), outcomes=RIGHT)
    measured = facts.where("accuracy", network=ANY, sparsity=ANY, seed=ANY)
    two, one = comparison.means(measured, "seed", "mean", alone=True)
    assert two.value == pytest.approx(0.3) and (two.low, two.high, two.n) == (0.0, 1.0, 2)
    assert one.cell == right.cell and one.measure == "mean" and one.outcomes is None
    assert one.keys == {"network": "b", "sparsity": 0.0}
    _, one = comparison.means(measured, "seed", "mean")
    assert one.low is None and one.count is None
    of_seeds(facts, "c", (0.1, 0.5))
    (wide,) = comparison.means(
        facts.where("accuracy", network="c", sparsity=ANY, seed=ANY), "seed", "m"
    )
    assert wide.low < 0 and wide.high > 1  # values that are no shares have no ends


def test_one_more_of_equal_values_says_nothing_and_groups_are_of_one_size():
    facts = Facts()
    of_seeds(facts, "a", (0.1, 0.1, 0.1))
    of_seeds(facts, "b", (0.3, 0.1 + 0.2, 0.3))
    measured = facts.where("accuracy", network=ANY, sparsity=ANY, seed=ANY)
    assert comparison.one_more(measured, "seed", "network", "noise") == []
    with pytest.raises(ValueError, match="same number of values in each network, got \\[2, 3\\]"):
        comparison.one_more(measured[1:], "seed", "network", "noise")


def test_facts_that_comparisons_make_are_found_by_the_same_keys():
    facts = Facts()
    same = [facts.add("right", network=name, outcomes=RIGHT) for name in "ab"]
    facts.extend([comparison.paired(*same, "gap", {"epsilon": 8 / 255, "other": None})])
    assert facts.of("gap", epsilon=8 / 255).value == 0
    with pytest.raises(ValueError, match="already a fact"):
        facts.add("gap", epsilon=0.0313725490196, value=1)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"value": "0.5"}, TypeError, "`value` of 'a' must be a number or None, got '0.5'"),
        ({"value": True}, TypeError, "`value` of 'a' must be a number"),
        ({"value": np.ones(2)}, TypeError, "`value` of 'a' must be a number"),
        ({"outcomes": [1, 0, 1]}, TypeError, "`outcomes` of 'a' must be bool or float, got int64"),
        ({"measure": 3, "value": 1}, ValueError, "A key cannot be called 'measure'"),
    ],
)
def test_what_is_no_fact(given, error, match):
    with pytest.raises(error, match=match):
        Facts().add("a", **given)


def test_figures_of_jax_and_numpy_are_numbers():
    facts = Facts()
    assert type(facts.add("a", value=jnp.float32(0.5), n=np.int64(3)).value) is float
    assert facts.add("b", value=jnp.float32(np.nan)).value is None


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("measure,valeu\na,1\n", ValueError, "must have the columns `measure` and `value`"),
        ("measure,value\na,1,2\n", ValueError, "line 2: there are more cells than columns"),
        (
            'measure,value,n\na,1,"1,593"\n',
            TypeError,
            "line 2: `n` of 'a' must be a number or None",
        ),
        ("measure,value\n,1\n", ValueError, "line 2: `measure` is missing"),
        ("measure,value,data\na,1,cifar100\n", ValueError, "has no facts of data='cifar10'"),
    ],
)
def test_a_file_that_is_wrong_says_where(tmp_path, text, error, match):
    path = tmp_path / "published.csv"
    path.write_text(text)
    with pytest.raises(error, match=match):
        Facts().read(path, only={"data": "cifar10"} if "data" in text else None)


def test_cells_of_a_file_are_numbers_where_they_look_like_them(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text("\ufeffmeasure,value,key\na,1e-3,nan\na,.5,1_000\na,2,True\na,-3,-3\n", "utf-8")
    found = Facts().read(path, source="x")
    assert [fact.value for fact in found] == [0.001, 0.5, 2, -3]
    assert [fact.keys["key"] for fact in found] == ["nan", "1_000", True, -3]


def test_several_seeds_are_compared_over_seeds_and_one_over_its_images():
    facts = Facts()
    for sparsity, shifts in ((0.3, (0, 1, 2)), (0.5, (1,))):
        for seed, shift in enumerate(shifts):
            of = {"sparsity": sparsity, "seed": seed}
            facts.add("right", network="dense", outcomes=np.arange(40) < 30, **of)
            facts.add("right", network="pruned", outcomes=np.arange(40) < 20 + shift, **of)
    measured = facts.where("right", network="pruned", sparsity=ANY, seed=ANY)

    def control(keys):
        return keys | {"network": "dense"}

    several, one = comparison.over_seeds_or_images(facts, measured, control, "gap")
    (over_seeds,) = comparison.over_seeds(facts, measured[:3], control, "gap")
    (over_images,) = comparison.over_images(facts, measured[3:], control, "gap")
    assert several.keys == {"network": "pruned", "sparsity": 0.3} and several.n == 3
    assert one.keys == {"network": "pruned", "sparsity": 0.5} and one.n == 40
    assert (several.value, several.low) == (over_seeds.value, over_seeds.low)
    assert (one.value, one.low) == (over_images.value, over_images.low)
    adjusted = evaluation.holm([over_seeds.p, over_images.p])
    assert [several.p, one.p] == adjusted != [over_seeds.p, over_images.p]


def test_one_more_value_would_lie_within_the_spread_of_the_others():
    facts = Facts()
    of_seeds(facts, "a", (0.1, 0.2, 0.3))
    of_seeds(facts, "b", (0.6, 0.7, 0.8))
    of_seeds(facts, "c", (0.5, 0.5, 0.5), attack="PGD")
    measured = facts.where("accuracy", network=ANY, sparsity=ANY, seed=ANY)
    (band,) = comparison.one_more(measured, "seed", "network", "band")
    # The variance of each is 0.01, with 4 degrees of freedom together.
    reach = 2.776445 * 0.1 * (4 / 3) ** 0.5
    assert (band.value, band.n, band.keys) == (0.0, 6, {"sparsity": 0.0})
    assert (band.low, band.high) == pytest.approx((-reach, reach))
    assert (
        comparison.one_more(
            facts.where("accuracy", network="c", sparsity=ANY, seed=ANY, attack=ANY),
            "seed",
            "network",
            "band",
        )
        == []
    )
    two = [fact for fact in measured if fact.keys["network"] == "a" and fact.keys["seed"] < 2]
    assert comparison.one_more(two, "seed", "network", "band") == []


def test_times_are_facts():
    facts = Facts()
    gap = {"median_ms": -0.5, "low_ms": -0.7, "high_ms": -0.2, "different": True}
    times = {"mean_ms": 3.0, "std_ms": 0.4, "median_ms": 2.9}
    records.add_latency(facts, times | {"difference": None}, network="dense", batch=1)
    records.add_latency(facts, times | {"difference": gap}, Variant("pruned"), batch=1)
    assert facts.of("latency", network="dense", batch=1).cell == {"value": 3.0, "deviation": 0.4}
    assert facts.of("median latency", Variant("pruned"), batch=1).value == 2.9
    assert facts.of("latency sign", Variant("pruned"), batch=1).value == -1
    (found,) = [fact for fact in facts if fact.measure == "latency to reference"]
    assert found.keys["network"] == "pruned" and (found.value, found.direction) == (-0.5, -1)


def test_medians_of_values_that_are_not_all_known():
    facts = Facts()
    assert facts.add_median("norm", Variant("none"), []).cell is None
    some = facts.add_median("norm", Variant("some"), [1.0, 2.0, 3.0, np.inf, np.inf])
    assert (some.value, some.low, some.n) == (3.0, None, 5)
    most = facts.add_median("norm", Variant("most"), [1.0, *[np.inf] * 9], attack="DF")
    assert most.value is None and most.cell is None and most.keys["attack"] == "DF"
    bounded = facts.add_median("norm", Variant("bounded"), [*range(6), np.inf])
    assert (bounded.value, bounded.low, bounded.high, bounded.cell) == (3, 0, None, 3)
    assert facts.add_median("norm", Variant("all"), range(7)).cell == {
        "value": 3,
        "low": 0,
        "high": 6,
    }


def test_means_of_values_that_are_not_all_defined():
    facts = Facts()
    facts.add_mean("score", Variant("none"), [np.nan, np.inf])
    assert not len(facts)
    facts.add_mean("score", Variant("some"), [1.0, 2.0, np.nan, 3.0], method="saliency")
    some = facts.of("score", Variant("some"), method="saliency")
    assert (some.value, some.n, some.cell["low"] < 1) == (2.0, 3, True)
    facts.add_mean("score", Variant("one"), [4.0])
    assert facts.of("score", Variant("one")).cell == 4.0
