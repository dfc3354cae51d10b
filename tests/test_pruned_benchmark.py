"""Source 003: the study's arithmetic and words, and the script from end to end."""

import dataclasses
import functools
import json
import types
from pathlib import Path

import cifar_archive
import coverage_page
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from report_pages import make_result

from experiments.pruned_benchmark import __main__ as pruned
from experiments.pruned_benchmark import comparisons, networks, threats
from experiments.pruned_benchmark.__main__ import NETWORKS, PRESETS, Settings, Variant, checked
from jaxrobust import data, evaluation, models, pruning, studies
from jaxrobust.attacks import conversation
from jaxrobust.data import archives
from jaxrobust.reports import blocks, evaluations, write_page
from jaxrobust.studies import Facts, suite_names, words
from jaxrobust.studies.outcomes import pack

TEMPLATE = Path(pruned.__file__).with_name("report.md.j2")
NETWORK = "resnet50"
THREE = ("mobilenet_v1", "resnet50", "vgg19")
SMALLER = [*PRESETS["cpu"]["networks"], *PRESETS["quick"]["networks"]]
preset = functools.partial(studies.preset, Settings, PRESETS)


def test_the_schedule_rises_from_a_tenth_to_the_target():
    rising = networks.schedule(0.5, 5, 4)
    assert rising[0] == 0.1 and rising[3:] == [0.5, 0.5] and rising == sorted(rising)
    assert networks.schedule(0.1, 3, 3) == [0.1, 0.1, 0.1]  # it just fine-tunes
    assert networks.schedule(0.5, 2, 1) == [0.5, 0.5]


@pytest.mark.parametrize("name", SMALLER)
def test_smaller_networks_lose_half_of_every_layer(name):
    """So that every criterion leaves the same sizes, and one program serves them all."""
    network = NETWORKS[name].create(10)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = networks.shapes(network, image)
    groups = pruning.channel_groups(network.apply, shapes, image)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    options = {"min_filters": networks.MIN_FILTERS}
    masks = pruning.prune_filters(variables["params"], 0.5, groups, **options)
    keep = pruning.kept_filters(masks, groups)
    for group, size in groups.sizes.items():
        assert len(keep[group]) == size - round(size / 2)
    small = pruning.shrink(variables, groups, keep)
    made = networks.shapes(models.resized(network, small), image)
    assert jax.tree.map(np.shape, small) == jax.tree.map(np.shape, made)


def test_attacks_are_those_of_table_7():
    source, honest = pruned.ATTACKS["source"], pruned.ATTACKS["8/255"]
    assert list(source) == list(honest)
    assert source["BiM"].epsilon == 1 and source["BiM"].num_steps == 100
    assert source["FGSM"].epsilon == 0.2 and not source["PGD"].random_start
    assert source["CW"].num_iterations == 10 and source["DF"].num_steps == 5
    assert all(honest[n].epsilon == 8 / 255 for n in ("FGSM", "BiM", "PGD", "APGD", "UP"))
    assert suite_names.shortened(source["CW"], 2).num_steps == 4
    assert suite_names.shortened(honest["UP"], 2).max_passes == 2
    assert [n for n in source if threats.looks_for_the_smallest(source[n])] == ["CW", "DF"]


def test_settings_of_a_run_say_how_universal_perturbations_are_made():
    """Everything that decides them, so that a folder is refused when it changes."""
    kept = [threats.described(pruned.ATTACKS[of]["UP"], of) for of in ("source", "8/255")]
    assert kept[0]["on_test"] and kept[0]["batch"] == 1
    assert kept[0]["attack"]["inner"]["type"].endswith("ArtDeepFool")
    assert not kept[1]["on_test"] and kept[1]["batch"] == threats.UNIVERSAL_BATCH
    assert kept[1]["attack"]["inner"]["type"].endswith("attacks.deepfool.DeepFool")


# What ART 1.20.1 makes of the network and images of `small`: the length of the change (l1 for APGD, l2
# for DeepFool) and two pixels of each image, after so many steps. It was given the same random start.
BY_ART = {
    ("APGD", 1): (
        [0.700043, 0.954131, 0.856007],
        [0.122006, 0.670686, 0.135212],
        [0.233663, 0.97, 0.645509],
    ),
    ("APGD", 22): (  # all steps before its first checkpoint
        [1.586815, 1.505682, 1.539972],
        [0.0, 0.603786, 0.193845],
        [0.325328, 0.873984, 0.6863],
    ),
    ("DeepFool", 1): (
        [0.133885, 0.055682, 0.007043],
        [0.073524, 0.699967, 0.095187],
        [0.251517, 0.961465, 0.587907],
    ),
    ("DeepFool", 2): (  # which only the third image needs
        [0.133885, 0.055682, 0.007054],
        [0.073524, 0.699967, 0.095189],
        [0.251517, 0.961465, 0.587909],
    ),
}


@pytest.mark.parametrize("name, num_steps", BY_ART)
def test_the_source_s_attacks_step_as_art_does(name, num_steps):
    random = np.random.default_rng(0)
    first, second = (random.normal(size=s).astype(np.float32) for s in ((16, 12), (12, 5)))
    images = random.uniform(size=(3, 4, 4, 1)).astype(np.float32)
    start = np.clip(images + random.uniform(-0.1, 0.1, size=images.shape), 0, 1)

    def small(x):
        return jnp.tanh((x.reshape(len(x), -1) - 0.5) @ first) @ second

    attack, order, begun = threats.ArtDeepFool(1e-6, 100), 2, {}
    if name == "APGD":
        attack, order = threats.ArtAPGD(0.1, num_iterations=100, step_size=0.03), 1
        begun = dict.fromkeys(("start", "point", "previous", "best"), jnp.float32(start))
    attack, keys = conversation.per_image(attack, 3), jax.random.split(jax.random.key(0), 3)
    labels = small(images).argmax(1)
    states = conversation.start(attack, keys, jnp.asarray(images), labels, 0)._replace(**begun)
    for _ in range(num_steps):
        answer = conversation.evaluate(attack, small, states, keys)[1]
        states = conversation.tell(attack, states, answer)
    found = np.asarray(conversation.ask(attack, states))
    lengths = [np.linalg.norm((found - images)[i].ravel(), order) for i in range(3)]
    of_art = (lengths, found[:, 0, 0, 0], found[:, 1, 2, 0])
    np.testing.assert_allclose(of_art, BY_ART[name, num_steps], rtol=0, atol=2e-6)


def test_apgd_of_the_source_starts_anywhere_in_the_ball():
    key, image = jax.random.key(0), jnp.full((8, 8, 1), 0.5)
    state = threats.ArtAPGD(0.3, step_size=0.1).init(key, image, 0, jnp.int32(0))
    moved = np.abs(np.asarray(state.point - image))
    assert 0.25 < moved.max() < 0.3 and moved.min() < 0.05  # the paper's start has 0.3 somewhere
    assert np.ptp(moved) > 0.2 and float(state.step_size) == np.float32(0.1)
    assert (state.start == state.point).all() and (state.previous == state.point).all()


def test_the_study_leaves_out_what_nncf_leaves_out():
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    left = {}
    for name in SMALLER:
        network = NETWORKS[name].create(10)
        shapes = networks.shapes(network, image)
        groups = pruning.channel_groups(network.apply, shapes, image)
        left[name] = networks.unpruned(groups, Settings())
        assert not networks.unpruned(
            groups, Settings(prune_first_conv=True, prune_downsample_convs=True)
        )
    assert left["vgg9_narrow"] == ["block_0/conv"] and left["densenet23_narrow"] == ["stem"]
    # A depthwise convolution with a stride shares its channels with the layer before it, and the last
    # layers of a stage share them with the shortcut.
    strided = [f"block_{i}_pointwise/conv" for i in (0, 2, 4, 10)]
    assert left["mobilenet_v1_narrow"] == ["stem/conv", *strided]
    stage = ["stage_1_block_0/shortcut/conv", "stage_1_block_0/conv_1/conv"]
    assert left["resnet8_tiny"] == ["stem/conv", *stage]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"data": "mnist"}, "`data` must be one of"),
        ({"networks": ("vgg11",)}, "`networks` must be one of"),
        ({"networks": ("vgg19", "vgg19")}, "none twice"),
        ({"criteria": ("l3",)}, "`criteria` must be one of"),
        ({"criteria": ()}, "`criteria` must have at least one value"),
        ({"sparsities": (0.05, 0.5)}, "`sparsities` must be a finite number at least 0.1"),
        ({"sparsities": (0.5, 0.3)}, "`sparsities` must ascend"),
        ({"sparsities": ()}, "`sparsities` must have at least one value"),
        ({"fine_tuning_epochs": 0}, "`fine_tuning_epochs` must be at least 1"),
        ({"milestones": (20, 10)}, "`milestones` must ascend"),
        ({"fine_tuning_milestones": (2, 1)}, "`fine_tuning_milestones` must ascend"),
        ({"multiple_of": 0}, "`multiple_of` must be at least 1"),
        ({"num_controls": 0}, "`num_controls` must be at least 1"),
        ({"num_train": 0}, "`num_train` must be at least 1"),
        ({"latency_runs": 1}, "`latency_runs` must be at least 2"),
        ({"preset": "huge"}, "`preset` must be one of"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        checked(Settings(**settings))


def test_presets_are_settings():
    full, cpu, quick = (checked(preset(name)) for name in ("full", "cpu", "quick"))
    assert full == Settings() and full.num_train is None and quick.quick
    assert cpu.networks == PRESETS["cpu"]["networks"] and cpu.num_train == 10_000
    assert full.sparsities == cpu.sparsities == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert preset("cpu", num_epochs=3).num_epochs == 3
    # Pruned networks train on at their last sparsity, and at a lower rate, before they are measured.
    for settings in (full, cpu):
        last = settings.fine_tuning_milestones[0]
        assert settings.pruning_epochs <= last < settings.fine_tuning_epochs
    # Fewer epochs than planned for cut the plan short.
    short = checked(preset("cpu", fine_tuning_epochs=2))
    assert (short.pruning_epochs, short.fine_tuning_milestones) == (2, ())


def test_networks_that_do_not_take_the_images_are_refused(monkeypatch):
    class Broken(nn.Module):
        @nn.compact
        def __call__(self, images):
            raise ValueError("too small")

    monkeypatch.setitem(NETWORKS, "broken", types.SimpleNamespace(create=lambda n: Broken()))
    split = data.Split(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4), ("",) * 4)
    mean = np.zeros(3, np.float32)
    dataset = data.Dataset("digits", split, split, tuple("abcd"), mean, mean + 1)
    pruned._check_sizes(Settings(networks=("vgg6_tiny",), num_train=4), dataset)
    with pytest.raises(ValueError, match="'broken' raises an error for images .*too small"):
        pruned._check_sizes(Settings(networks=("broken",)), dataset)
    with pytest.raises(ValueError, match="`num_train` must be at most 4, got 5"):
        pruned._check_sizes(Settings(networks=(), num_train=5), dataset)


def outcomes(count: int, right: int) -> np.ndarray:
    return np.arange(count) < right


RIGHTS = {"base": 20, "control": 30, "control 2": 28, "control 3": 29, 0.1: 32, 0.5: 24}


def rights(variant: Variant, names: tuple[str, ...]) -> int:
    """How many of 40 images a made-up network has right.

    The second network's figures are one image less than the first's, the third's two; what was pruned
    to 50 % loses as many once more.
    """
    less = names.index(variant.network)
    if variant.kind not in pruned.CRITERIA:
        return RIGHTS[variant.label] - less
    return RIGHTS[variant.sparsity] - less - less * (variant.sparsity == 0.5)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a study of made-up outcomes, as if it had been run on CIFAR-10."""

    def make(
        names: tuple[str, ...] = (NETWORK,),
        criteria: tuple[str, ...] = ("l2",),
        num_controls: int = 3,
        white: dict | None = None,
        dataset: data.Dataset | None = None,
    ) -> pruned.Study:
        if dataset is None:
            split = data.Split(np.zeros((40, 32, 32, 3), np.uint8), np.arange(40) % 10, ("",) * 40)
            mean = np.zeros(3, np.float32)
            dataset = data.Dataset("cifar10", split, split, tuple("abcdefghij"), mean, mean + 1)
        settings = Settings(
            networks=names,
            criteria=criteria,
            sparsities=(0.1, 0.5),
            num_controls=num_controls,
            results_dir=tmp_path,
            run=f"{len(names)}-{len(criteria)}-{num_controls}-{white is None}",
        )
        study = pruned.Study(checked(settings), dataset)
        study.classifier = lambda variant: variant
        (study.run.folder / "models").mkdir()

        def train(study, variant, progress):
            study.path(variant).touch()
            count = rights(variant, names)
            of = {"kept": 0.5, "difference": 1e-7} if variant.kind != "base" else {}
            return {"right": pack(outcomes(40, count)), "parameters": count, "bytes": count, **of}

        def show(study, surrogate, setting, name, victims, progress):
            return {v.name: pack(outcomes(40, rights(v, names) // 2)) for v in victims}

        def white_box(attacks, smallest, variant, attacked, key, progress):
            count = rights(variant, names)
            right = {
                name: pack(outcomes(40, (white or {}).get(name, count - 10))) for name in attacks
            }
            return {
                "right": right,
                "norms": np.where(outcomes(40, count), count / 10, 0.0).tolist(),
            }

        gap = {"median_ms": -1.0, "low_ms": -1.5, "high_ms": -0.5, "different": True}
        times = {"mean_ms": 4.0, "std_ms": 0.5, "median_ms": 4.0, "difference": None}
        faster = times | {"median_ms": 3.0, "difference": gap}

        def latencies(study, progress):
            variants = {v.label: faster for v in study.pruned(names[0])} | {"base": times}
            of = {"floor": 0.1, "variants": variants}
            return [{"network": n, "batch": b, **of} for n in names for b in pruned.BATCH_SIZES]

        report = types.SimpleNamespace(
            attacked=outcomes(40, 20), success=outcomes(40, 15), l2=np.full(40, 0.4)
        )
        monkeypatch.setattr(pruned, "train", train)
        monkeypatch.setattr(pruned, "_craft_and_show", show)
        monkeypatch.setattr(pruned, "_times", latencies)
        monkeypatch.setattr(threats, "white_box", white_box)
        monkeypatch.setattr(evaluation, "load_attack", lambda path, *own: report)
        for part in (pruned.measure, pruned.show, pruned.attack_each, pruned.time_each):
            part(study)
        of = (study.source_data, dataset.num_classes)
        study.doubted = comparisons.publish(study.facts, pruned.SOURCE, *of)
        of = (pruned.ATTACKS, pruned.WHITE_BOX, pruned.COMPARED, study.settings.sparsities)
        comparisons.compare(study.facts, *of)
        return study

    return make


def page(study: pruned.Study, facts: Facts | None = None) -> tuple[list[str], list[dict]]:
    """The words of a study: (summary, blocks)."""
    tile = blocks.tile(np.zeros((2, 2, 3)))
    names = {name: value for name, value in vars(pruned).items() if name.isupper()}
    names |= {"settings": study.settings, "study": study, "blocks": blocks}
    names |= {"doubted": study.doubted, "entries": [], "pictured": ("a", [("CW", [tile] * 5)])}
    names |= {"comparisons": comparisons, "evaluations": evaluations}
    return words.render(TEMPLATE, facts or study.facts, names)


def answers(study: pruned.Study, facts: Facts | None = None) -> list[str]:
    """The three verdicts as a reader sees them."""
    _, found = page(study, facts)
    texts = [block["text"] for block in found if block["kind"] == "verdict"]
    return [text.replace("\xa0", " ").replace("\\", "") for text in texts]


def tables(study: pruned.Study, section: str, found: list | None = None) -> dict[str, dict]:
    """The tables of a section by title."""
    at, kept = None, {}
    for block in found or page(study)[1]:
        at = block["id"] if block["kind"] == "heading" else at
        if block["kind"] == "table" and at == section:
            kept[block.get("title")] = block
    return kept


def cells(table: dict) -> dict[str, list]:
    return {row[0]: row for row in table["rows"]}


def test_figures_over_networks(made):
    facts = made(THREE).facts
    trained = facts.of("accuracy from training")
    assert trained.value == pytest.approx(9 / 40) and trained.n == 3
    # 5, 6 and 7 images less than the mean of the controls.
    most = facts.of("accuracy from pruning", sparsity=0.5)
    assert most.value == pytest.approx(-6 / 40)
    assert most.high - most.value == pytest.approx(4.302653 / 3**0.5 / 40, rel=1e-5)
    assert facts.of("accuracy from pruning", kind="l2", sparsity=0.5).value == most.value
    # Norms are tenths of the images that are right: shares of the controls' mean.
    share = facts.of("white-box norm from pruning", sparsity=0.5)
    assert share.value == pytest.approx(-(5 / 29 + 6 / 28 + 7 / 27) / 3)
    assert facts.of("white-box norm", Variant("resnet50")).value == pytest.approx(1.9)
    # 3 controls each, one image apart: a variance of 1 with 6 degrees of freedom.
    noise = facts.of("accuracy gap", kind="control", sparsity=0.0)
    assert noise.high == pytest.approx(2.446912 * (4 / 3) ** 0.5 / 40, rel=1e-5)
    # 3 images more are beyond 2.83, 5 to 7 less too.
    for network in THREE:
        for side in ("above", "below"):
            beyond = facts.of("accuracy beyond noise", network=network, side=side)
            assert (beyond.count, beyond.n) == (1, 2)
    assert facts.of("accuracy of controls", network="vgg19").value == pytest.approx(27 / 40)
    two = made(THREE[:2]).facts
    assert two.of("accuracy from pruning", sparsity=0.5).low is None


def test_criteria_are_averaged_before_networks(made):
    facts = made(THREE, criteria=("l1", "l2")).facts
    each = [facts.of("accuracy from pruning", kind=kind, sparsity=0.1) for kind in ("l1", "l2")]
    both = facts.of("accuracy from pruning", sparsity=0.1)
    assert both.n == each[0].n == 3
    assert both.value == pytest.approx((each[0].value + each[1].value) / 2)


def test_images_that_the_base_has_wrong_do_not_count_as_shown(made):
    facts = made().facts
    keys = {"setting": "source", "attack": "CW"}
    found = facts.of("still right", Variant(NETWORK, "l2", 0.1), **keys)
    assert (found.count, found.n) == (16, 20)
    shown = facts.of(
        "accuracy under attack", Variant(NETWORK, "l2", 0.1), surrogate=NETWORK, **keys
    )
    assert (shown.count, shown.n) == (16, 40)
    assert facts.of("fooled", keys, network=NETWORK).cell["count"] == 15


def test_white_box_compares_images_that_both_have_right(made):
    facts = made().facts
    assert (
        facts.find("white-box accuracy to control", Variant(NETWORK), attack="APGD at 1/255")
        is None
    )
    found = {
        (f.keys["kind"], f.keys["sparsity"], f.keys.get("number")): f
        for f in facts
        if f.measure == "white-box accuracy to control"
    }
    assert set(found) == {
        ("control", 0, 1),
        ("control", 0, 2),
        ("l2", 0.1, None),
        ("l2", 0.5, None),
    }
    # 14 of the first 24 against 20; 22 of the first 30 against 20.
    most, least = found["l2", 0.5, None], found["l2", 0.1, None]
    assert most.n == 24 and most.value == pytest.approx(-6 / 24)
    assert least.n == 30 and least.value == pytest.approx(2 / 30)
    # 6 images that one alone has right, and four comparisons.
    assert most.p == pytest.approx(4 * 2 * 0.5**6)


def test_nothing_is_compared_where_one_network_has_no_figure():
    facts = Facts()
    for network, figure in (("a", 1.0), ("b", None)):
        facts.add("norm", Variant(network), value=figure)
        facts.add("norm", Variant(network, "control", 0.0, 0), value=2.0)
    comparisons.against_controls(facts, "norm")
    assert {fact.measure for fact in facts} == {"norm"}


# Means over networks (value, low, high, perhaps how many networks) at 10 %, 20 % ..., and what is said.
EFFECTS = [
    ([(0.02, 0.01, 0.03)], "it rises by +2.0 points (+1.0 to +3.0) at 10 %."),
    (
        [(0.02, 0.01, 0.03), (-0.02, -0.03, -0.01)],
        "it rises by +2.0 points (+1.0 to +3.0) at 10 %; it falls by −2.0 points (−3.0 to −1.0) "
        "at 20 %.",
    ),
    (
        [(0.02, 0.01, 0.03), (0.03, 0.02, 0.04)],
        "it rises by +2.0 points (+1.0 to +3.0) at 10 %, by +3.0 points (+2.0 to +4.0) at 20 %.",
    ),
    (
        [(0.001, -0.01, 0.01), (-0.002, -0.02, 0.01), (0.001, -0.01, 0.01)],
        "no change is shown at 10 %, 20 % and 30 %, at most −0.2 points (−2.0 to +1.0).",
    ),
    (
        [(0.02, 0.01, 0.03), (0.001, -0.01, 0.01)],
        "it rises by +2.0 points (+1.0 to +3.0) at 10 %; no change is shown at 20 %, at most +0.1 "
        "points (−1.0 to +1.0).",
    ),
    ([(0.0, None, None)], "no change is shown at 10 %, at most 0.0 points."),
    ([(0.01, None, None, 2)], "+1.0 points, with too few networks for an interval."),
    (
        [(0.01, None, None, 2), (-0.01, None, None, 2)],
        "−1.0 points to +1.0 points, with too few networks for an interval.",
    ),
]


def test_effects_in_words(made):
    study = made(THREE)
    others = [f for f in study.facts if f.measure != "accuracy from pruning" or "kind" in f.keys]
    for means, said in EFFECTS:
        facts = Facts()
        facts.extend(others)
        for index, (value, low, high, *n) in enumerate(means):
            figures = {"value": value, "low": low, "high": high, "n": (n or [4])[0]}
            facts.add("accuracy from pruning", sparsity=(index + 1) / 10, **figures)
        assert f"The additional effect of pruning: {said}" in answers(study, facts)[0]


@pytest.mark.parametrize("criteria", [("l2",), ("l1", "l2"), ("random",)])
def test_texts_of_one_network_and_one_control(made, criteria):
    study = made(criteria=criteria, num_controls=1)
    _, found = page(study)
    said = json.dumps(found)
    assert "the mean of" not in answers(study)[0] and "1 controls" not in said
    assert "one in 20" not in said and "All networks together" not in said
    assert 'id": "transfer-tables' not in said
    assert "the variation between trainings is not known" in said
    assert ("With L1: " in answers(study)[0]) == (len(criteria) > 1)
    # The source has nothing of what was pruned at random.
    assert ("CW, source" in said) == (criteria != ("random",))


def test_answers_say_what_the_figures_do(made):
    accuracy, shown, white = answers(made(THREE))
    assert "changes accuracy by +22.5 points compared with the base" in accuracy
    assert "it falls by −15.0 points (−21.2 to −8.8) at 50 %" in accuracy
    assert "within 7.1 points of the mean" in accuracy
    assert "mobilenet_v1 (1 above and 1 below, of 2), resnet50 (1 above" in accuracy
    assert "With the source's parameters pruned networks have them right more often in" in shown
    assert "of 14 cases" in shown and "42 of 84 on CIFAR-10 and 17 of 54 on CIFAR-100" in shown
    assert white.count("leaves the controls 45.0 %; with pruning it") == 3
    gone = answers(made(THREE, white={"FGSM at 8/255": 0}))[2]
    assert "the controls have almost no image right: FGSM at 8/255 (0.0 %)." in gone


def test_tables_of_accuracy(made):
    found = tables(made(), "accuracy-over-sparsity")
    extremes = cells(found["Largest gain and loss"])[NETWORK]
    assert [cell["rate"] for cell in extremes[1:3]] == [0.5, 0.75]
    np.testing.assert_allclose(extremes[3:7], [30, 10, 5, -15])
    np.testing.assert_allclose(extremes[7:], [5, -7.7], atol=1e-9)  # of all that the source has
    rows = cells(found[NETWORK])
    assert rows["L2, 50 %"][1]["count"] == 24
    assert rows["L2, 50 %"][2]["value"] == pytest.approx(10)
    assert rows["L2, 50 %"][4]["value"] == pytest.approx(-15)
    assert rows["L2, 50 %"][7] == pytest.approx(0.704)
    assert rows["L2, 50 %"][8] == pytest.approx(-7.7)
    assert rows["control"][2]["value"] == pytest.approx(25) and rows["control"][4] is None
    assert rows["control 2"][4]["value"] == pytest.approx(-5)
    assert rows["base"][2:6] == [None] * 4 and rows["base"][7] == pytest.approx(0.781)


def test_tables_under_attack_stand_beside_the_source(made):
    study = made()
    rows = cells(tables(study, "shown-source")[f"{NETWORK}, L2"])
    assert [cell["count"] for cell in rows["PGD"][1:5]] == [10, 15, 16, 12]
    np.testing.assert_allclose(rows["PGD"][5:], [15, 2.5])
    theirs = rows["CW, source"]
    np.testing.assert_allclose([theirs[1], *theirs[3:6]], [0.683, 0.714, 0.604, 3.1])
    assert theirs[2] is None and "noise, source" not in rows
    assert "PGD, source" not in cells(tables(study, "shown-8-255")[f"{NETWORK}, L2"])


def test_tables_of_transfer_time_and_size(made):
    study = made(THREE)
    found = tables(study, "transfer-tables")
    made_on = found["Made on resnet50, the source's parameters"]
    assert [row[:2] for row in made_on["rows"][:4]] == [
        ["mobilenet_v1", label] for label in ("base", "control", "L2, 10 %", "L2, 50 %")
    ]
    best = found["Made on resnet50, the source's parameters: max δ in points"]["rows"][0]
    assert best[:2] == ["mobilenet_v1", "base"] and best[3] == pytest.approx(15)
    theirs = cells(found["The source's table 11: made on VGG19"])
    assert theirs["ResNet50, 30 %"][4] == pytest.approx(0.822)
    assert "is in doubt, 82.2" in found["The source's table 11: made on VGG19"]["caption"]
    timed = tables(study, "inference-time")["Batches of 32"]["rows"]
    assert timed[1][:2] == ["mobilenet_v1", "L2, 10 %"]
    assert timed[1][6:8] == ["faster", pytest.approx(4 / 3)] and timed[0][6:8] == ["", 1.0]
    assert timed[1][8] == {"value": 19.41, "deviation": 2.09} and timed[2][8]["value"] == 19.6
    sizes = tables(study, "sizes")
    assert sizes["Parameters and files"]["rows"][1][3] == pytest.approx(1 - 32 / 20)
    assert cells(sizes["What the source's files hold"])["VGG19"][1:3] == [230, 77]


def test_the_published_page_has_the_source_s_tables(made, tmp_path):
    study = made((*THREE, "densenet121"))
    summary, found = page(study)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(make_result(found) | {"summary": summary}))
    text = write_page(path, tmp_path / "page.md", pruned.PUBLISHED).read_text("utf-8")
    tables_of = {6: "ResNet50", 9: "DenseNet121", 10: "MobileNet", 11: "VGG19"}
    for number, name in tables_of.items():
        assert f"### The source's table {number}: made on {name}" in text
    assert "### Made on vgg19, the source's parameters" in text
    assert "| CW, source | 68.3 % |" in text  # its table 2
    assert "Source, against the base: max δ, points" in text  # its table 1
    assert "Batches of 32" in text and "What the source's files hold" in text
    assert "except the first convolution and convolutions with a stride above 1" in text
    assert "as NNCF does by default" in text and "of 64 filters none at 10 %" in text


def test_a_page_says_nncf_of_its_defaults_alone(made):
    study = made()
    study.settings = dataclasses.replace(study.settings, prune_first_conv=True, multiple_of=1)
    said = str(page(study)[1])
    assert "except convolutions with a stride above 1" in said
    assert "as NNCF does by default" not in said and "rounded up" not in said


@pytest.fixture
def hundred(tmp_path, monkeypatch, cache_dir):
    """A folder with a stand-in for CIFAR-100: random images of 100 classes in the real format."""
    content = cifar_archive.members("cifar100", per_batch=160, num_test=40)
    path = cifar_archive.write(tmp_path / archives.ARCHIVES["cifar100"].file_name, content)
    official = cifar_archive.official("cifar100", path.read_bytes())
    monkeypatch.setitem(archives.ARCHIVES, "cifar100", official)
    return tmp_path


def test_tables_of_cifar100_stand_beside_the_source(made, hundred):
    """Its tables 13 to 17, on a stand-in for the data set."""
    names = ("mobilenet_v1", "densenet121", "resnet50")
    dataset = data.load("cifar100", hundred)
    study = made(names, criteria=("l1", "l2", "geometric_median"), dataset=dataset)
    _, found = page(study)
    assert study.source_data == "cifar100" and dataset.num_classes == 100
    extremes = cells(
        tables(study, "accuracy-over-sparsity", found)["Largest gain and loss"]
    )  # table 13
    np.testing.assert_allclose([extremes[n][7] for n in names], [7.02, 12.2, 8.0], atol=0.011)
    np.testing.assert_allclose([extremes[n][8] for n in names], [0.71, 3.66, -9.08], atol=0.011)
    shown = tables(study, "shown-source", found)
    for number, label, df in ((14, "L2", 0.3507), (15, "L1", 0.352), (16, "GM", 0.3483)):
        table = shown[f"mobilenet_v1, {label}"]
        assert f"its table {number}" in table["caption"]
        rows = cells(table)
        assert rows["DF, source"][3] == pytest.approx(df) and "CW, source" not in rows
    sizes = cells(tables(study, "sizes", found)["What the source's files hold"])  # table 17
    assert sizes["ResNet50"][1:3] == [273, 92] and set(sizes) == {
        *("MobileNet", "DenseNet121", "ResNet50")
    }
    # It has no transfer on CIFAR-100.
    assert not [
        title for title in tables(study, "transfer-tables", found) if "source's table" in title
    ]


@pytest.mark.slow(60)
def test_quick_on_a_stand_in_of_cifar100(hundred):
    """The whole of the study with 100 classes: nothing is learned from random images."""
    of = {"data": "cifar100", "data_dir": hundred, "results_dir": hundred / "results"}
    of |= {"networks": ("resnet8_tiny",), "num_train": 128, "num_attacked": 8, "criteria": ("l2",)}
    report = pruned.main(preset("quick", **of))
    facts = studies.load_facts(report.parent)
    ours = facts[(facts.measure == "accuracy under attack") & facts.source.isna()]
    assert set(ours.attack) - {"none"} == set(pruned.ATTACKS["source"])
    assert models.load(report.parent / "models" / "resnet8-tiny-base.jrw").classifier(
        np.zeros((1, 32, 32, 3), np.float32)
    ).shape == (1, 100)
    result = json.loads((report.parent / "result.json").read_text())
    said = json.dumps(result["blocks"])
    assert "its table 14" in said and '"APGD, source"' in said


def test_every_section_that_the_coverage_names_is_there(made):
    _, found = page(made(THREE))
    assert coverage_page.named("pruned_benchmark") <= {block.get("id") for block in found}


def test_one_more_of_everything_takes_a_line_each(made, monkeypatch):
    """A network, a criterion, an attack and a measure are rows of tables in __main__.py."""
    monkeypatch.setitem(NETWORKS, "resnet18", networks.Network("resnet18"))
    score = pruning.summed(lambda filters: np.square(filters.weights).sum(1))
    squares = networks.Labelled("squares", pruning.Criterion(score))
    monkeypatch.setitem(pruned.CRITERIA, "squares", squares)
    for setting in pruned.ATTACKS.values():
        monkeypatch.setitem(setting, "MIM", setting["PGD"])
    monkeypatch.setitem(pruned.WHITE_BOX, "BiM at 8/255", pruned.ATTACKS["8/255"]["BiM"])
    monkeypatch.setitem(pruned.MEASURES, "errors", lambda study, v: float(rights(v, ("resnet18",))))
    study = made(("resnet18",), criteria=("squares",))
    assert study.facts.of("errors", Variant("resnet18", "squares", 0.5)).value == 24
    rows = cells(tables(study, "shown-source")["resnet18, squares"])
    assert "MIM" in rows and "CW, source" not in rows
    heads = [c["title"] for c in tables(study, "white-box")["resnet18"]["columns"]]
    assert "BiM at 8/255" in heads
    assert list(cells(tables(study, "accuracy-over-sparsity")["resnet18"]))[-1] == "squares, 50 %"


def untimed(facts):
    """A table of facts without times, and without the numbers of rows that depend on them."""
    timed = facts.measure.str.contains("latency|noise floor|times faster")
    return facts[~timed].drop(columns="outcomes").reset_index(drop=True)


@pytest.mark.slow(95)
def test_quick_from_end_to_end_resumed_and_refused(tmp_path, capsys):
    settings = preset(
        "quick", results_dir=tmp_path, num_train=256, num_attacked=8, criteria=("l2",)
    )
    report = pruned.main(settings)
    folder = tmp_path / "pruned_benchmark" / "default"
    result = json.loads((folder / "result.json").read_text())
    assert report == folder / "report.html" and "Report:" in capsys.readouterr().out
    facts = studies.load_facts(folder)
    right = facts[facts.measure == "accuracy"]
    assert list(zip(right.network, right.kind, strict=True)) == [
        (network, kind)
        for network in PRESETS["quick"]["networks"]
        for kind in ("base", "control", "l2")
    ]
    assert sum(block["kind"] == "verdict" for block in result["blocks"]) == 3
    assert not (folder / "training").exists() or not list((folder / "training").glob("*/*"))

    # What was removed is not in the file, and the file is a model like any other.
    dense = folder / "models" / "vgg6-tiny-base.jrw"
    small = folder / "models" / "vgg6-tiny-l2-50.jrw"
    assert small.stat().st_size < dense.stat().st_size / 2
    smaller = studies.load_model(str(small)).classifier
    assert smaller(np.zeros((2, 32, 32, 3), np.float32)).shape == (2, 10)
    assert (facts[facts.measure == "logit difference"].value < 1e-3).all()

    text = report.read_text()
    for anchor in coverage_page.named("pruned_benchmark"):
        assert f'id="{anchor}"' in text, anchor

    # Killed after some stages: what was finished is read back, the rest made again, the same.
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*.json")}
    lost = [path for path in kept if "vgg6-tiny-l2" in path.name or "latency" in path.name]
    assert len(lost) > 2
    for path in (*lost, folder / "result.json"):
        path.unlink()
    pruned.main(settings)
    again = studies.load_facts(folder)
    assert untimed(again).equals(untimed(facts))
    for path, time in kept.items():
        assert (path.stat().st_mtime_ns == time) == (path not in lost)

    with pytest.raises(ValueError, match="num_attacked was 8, is now 9"):
        pruned.main(dataclasses.replace(settings, num_attacked=9))
    assert len(studies.load_facts(folder)) == len(again)
