"""What a classifier closes over is read at each call, and equal programs are compiled once."""

import dataclasses
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from counting import Counted, num_compiled
from flax import linen, nnx

from jaxrobust import attacks, attribution, defenses, evaluation, export, programs
from jaxrobust.evaluation import Execution
from jaxrobust.models import Classifier
from jaxrobust.types import Stochastic

KEY = jax.random.key(0)
IMAGES = np.random.default_rng(0).random((8, 4, 4, 2)).astype(np.float32)
ONE = jax.ShapeDtypeStruct((1, 4, 4, 2), np.float32)


def shown(logits_fn, images=IMAGES):
    return evaluation.logits(logits_fn, images)


def means(images):
    return images.mean((1, 2))


# Changed numbers and arrays -----------------------------------------------------------------------


def test_the_smallest_example_of_frozen_weights():
    """A number in a dict: `logits` said 0 after it had become 9."""
    w = {"v": 0.0}

    def logits_fn(x):
        return x.mean((1, 2)) + jnp.array([w["v"], 0.0])

    before = shown(logits_fn)
    w["v"] = 9.0
    after = shown(logits_fn)
    np.testing.assert_allclose(after - before, np.array([[9.0, 0.0]] * 8), atol=1e-5)
    labels = np.zeros(8, int)
    assert evaluation.evaluate(logits_fn, IMAGES, labels)["accuracy"]["count"] == 8
    report = evaluation.attack_dataset(attacks.PGD(0.1), logits_fn, IMAGES, labels, key=KEY)
    assert evaluation.robust_accuracy(report)["count"] == 8
    suite = {"fgsm": attacks.FGSM(0.1)}
    found = evaluation.attack_suite(suite, logits_fn, IMAGES, labels, key=KEY)
    assert found.robust_accuracy["count"] == 8
    w["v"] = -9.0
    assert evaluation.evaluate(logits_fn, IMAGES, labels)["accuracy"]["count"] == 0
    result = attacks.FGSM(0.1)(KEY, logits_fn, IMAGES, labels)
    assert result.success.all()


def closure(box):
    return lambda x: means(x) @ box["w"]


def bound_method(box):
    class Network:
        def logits(self, x):
            return means(x) @ box["w"]

    return Network().logits


def partial(box):
    return functools.partial(lambda box, x: means(x) @ box["w"], box)


def pytree_partial(box):
    return jax.tree_util.Partial(lambda x: means(x) @ box["w"])


def jitted_inside(box):
    return lambda x: jax.jit(lambda y: y @ box["w"])(means(x))


def numpy_array(box):
    return lambda x: means(x) @ np.asarray(box["w"])


def apply_of_a_classifier(box):
    return Classifier(lambda _, x: means(x) @ box["w"], {})


def in_a_defence(box):
    return defenses.Preprocessed(lambda x: means(x) @ box["w"], lambda x: x)


def in_an_ensemble(box):
    return defenses.Ensemble([lambda x: means(x) @ box["w"]], average="logits")


def in_a_scan(box):
    def logits_fn(x):
        return jax.lax.scan(lambda c, _: (c @ box["w"], None), means(x), None, length=1)[0]

    return logits_fn


def jitted_in_a_scan(box):
    def logits_fn(x):
        step = jax.jit(lambda c: c @ box["w"])
        return jax.lax.scan(lambda c, _: (step(c), None), means(x), None, length=1)[0]

    return logits_fn


def jitted_in_a_condition(box):
    def logits_fn(x):
        product = jax.jit(lambda y: y @ box["w"])
        return jax.lax.cond(x.sum() > -1, product, jnp.zeros_like, means(x))

    return logits_fn


def jitted_in_a_checkpoint(box):
    return lambda x: jax.checkpoint(lambda y: jax.jit(lambda z: z @ box["w"])(y))(means(x))


def in_a_rule(box):
    @jax.custom_vjp
    def product(y):
        return y @ box["w"]

    product.defvjp(lambda y: (y @ box["w"], None), lambda _, g: (g @ box["w"].T,))
    return lambda x: product(means(x))


def in_a_jvp_rule(box):
    @jax.custom_jvp
    def product(y):
        return y @ box["w"]

    product.defjvp(lambda p, t: (p[0] @ box["w"], t[0] @ box["w"]))
    return lambda x: product(means(x))


# Arrays of functions that are compiled inside a loop or the like are compared by their values.
COMPILES = (jitted_in_a_scan, jitted_in_a_condition, jitted_in_a_checkpoint)
KINDS = (
    *COMPILES,
    *(in_a_rule, in_a_jvp_rule),
    *(closure, bound_method, partial, pytree_partial, jitted_inside, numpy_array),
    *(apply_of_a_classifier, in_a_defence, in_an_ensemble, in_a_scan),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_changed_arrays_are_seen_and_compile_nothing(kind):
    box = {"w": jnp.asarray(np.diag([1.0, 2.0]), jnp.float32)}
    logits_fn = kind(box)
    attack = attacks.PGD(0.1, 0.05, 3)

    def everything():
        values = shown(logits_fn)
        labels = values.argmax(1)
        result = attack(KEY, logits_fn, IMAGES, labels)
        report = evaluation.attack_dataset(attack, logits_fn, IMAGES, labels, key=KEY)
        np.testing.assert_array_equal(
            result.success, shown(logits_fn, result.images).argmax(1) != labels
        )
        return values, report.logits, attribution.saliency(logits_fn, IMAGES)

    first = everything()
    box["w"] = 3 * box["w"]
    before = num_compiled()
    second = everything()
    assert num_compiled() == before or kind in COMPILES
    np.testing.assert_allclose(second[0], 3 * first[0], rtol=1e-5)
    np.testing.assert_allclose(second[2], 3 * first[2], rtol=1e-5)


def test_an_array_of_numpy_that_is_written_to_is_seen():
    weights = np.eye(2, dtype=np.float32)

    def logits_fn(x):
        return means(x) @ weights

    before = shown(logits_fn)
    weights *= 2
    np.testing.assert_allclose(shown(logits_fn), 2 * before, rtol=1e-6)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.bn = nnx.BatchNorm(2, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(2, 3, rngs=rngs)

    def __call__(self, images):
        return self.dense(self.drop(self.bn(images).mean((1, 2))))


@pytest.mark.parametrize("form", ["module", "closure", "method"])
def test_nnx_modules(form):
    model = Network(nnx.Rngs(0))
    model.eval()
    forms = {"module": model, "closure": lambda x: model(x), "method": model.__call__}
    logits_fn = forms[form]
    before = shown(logits_fn)
    model.dense.kernel[...] = 2 * model.dense.kernel[...]
    np.testing.assert_allclose(shown(logits_fn), 2 * before, rtol=1e-5)  # its bias is 0
    labels = before.argmax(1)
    result = attacks.PGD(0.1)(KEY, logits_fn, IMAGES, labels)
    np.testing.assert_array_equal(
        result.success, shown(logits_fn, result.images).argmax(1) != labels
    )
    model.train()
    for call in (
        lambda: shown(logits_fn),
        lambda: evaluation.evaluate(logits_fn, IMAGES, labels),
        lambda: attacks.PGD(0.1)(KEY, logits_fn, IMAGES, labels),
        lambda: attribution.saliency(logits_fn, IMAGES),
        lambda: evaluation.sanity(logits_fn, IMAGES, labels, 0.1, key=KEY),
    ):
        with pytest.raises(ValueError, match=r"changes its own state.*`model.eval\(\)`"):
            call()


def test_equinox_modules():
    """An MLP has its activation as a leaf, which is no array."""
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(2, 3, 4, 1, key=KEY)

    class Images(eqx.Module):
        mlp: eqx.nn.MLP

        def __call__(self, images):
            return jax.vmap(self.mlp)(images.mean((1, 2)))

    module = Images(model)
    expected = jax.vmap(model)(means(jnp.asarray(IMAGES)))
    for logits_fn in (module, lambda x: jax.vmap(model)(means(x))):
        np.testing.assert_allclose(shown(logits_fn), expected, rtol=1e-5)
        result = attacks.PGD(0.1)(KEY, logits_fn, IMAGES, np.argmax(expected, 1))
        assert result.images.shape == IMAGES.shape
    other = eqx.nn.MLP(2, 3, 4, 1, key=jax.random.key(2))
    before = num_compiled()
    shown(lambda x: jax.vmap(other)(means(x)))
    assert num_compiled() == before  # equal programs


def test_a_stochastic_classifier_of_a_closure():
    box = {"w": jnp.eye(2)}

    def noisy(keys, images):
        noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
        return (means(images) + 0.01 * noise) @ box["w"]

    stochastic = Stochastic(jax.tree_util.Partial(noisy), 4)
    before = shown(stochastic)
    box["w"] = 2 * jnp.eye(2)
    np.testing.assert_allclose(shown(stochastic), 2 * before, rtol=1e-5)


def test_an_expectation_of_a_closure():
    box = {"w": jnp.eye(2)}
    mean = defenses.Expectation(lambda key, x: means(x) @ box["w"], KEY, 3, average="logits")
    images = jnp.asarray(IMAGES)
    before = np.asarray(mean(images))
    box["w"] = 2 * jnp.eye(2)
    np.testing.assert_allclose(mean(images), 2 * before, rtol=1e-5)
    np.testing.assert_allclose(shown(mean), 2 * before, rtol=1e-5)


def test_what_is_exported_is_what_it_is_now(tmp_path):
    box = {"w": jnp.eye(2)}
    logits_fn = closure(box)
    export.save(tmp_path / "a", logits_fn, (4, 4, 2))
    box["w"] = 2 * jnp.eye(2)
    export.save(tmp_path / "b", logits_fn, (4, 4, 2))
    images = jnp.asarray(IMAGES)
    first, second = export.load(tmp_path / "a")(images), export.load(tmp_path / "b")(images)
    np.testing.assert_allclose(second, 2 * first, rtol=1e-6)


# Which programs are one ---------------------------------------------------------------------------


def straight_through(backward):
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(4 * x) / 4

    rounded.defvjp(lambda x: (rounded(x), None), backward)
    return lambda x: means(rounded(x))


def test_a_backward_rule_is_part_of_a_program():
    """BPDA: equal logits, and another gradient."""

    def backward(scale):
        return lambda _, g: (scale * g,)

    one, same, none = (straight_through(backward(scale)) for scale in (1.0, 1.0, 0.0))
    programs_of = [programs.as_argument(f, ONE) for f in (one, same, none)]
    assert programs_of[0].code is programs_of[1].code
    assert programs_of[0].code is not programs_of[2].code
    labels = shown(one).argmax(1)
    attack = attacks.BIM(0.2, 0.1, 5)
    fooled = [attack(KEY, f, IMAGES, labels) for f in (one, none)]
    assert fooled[0].success.sum() > 0
    np.testing.assert_array_equal(fooled[1].images, IMAGES)  # no gradient, no step


def custom_gradient(scale):
    return lambda x: means(
        jax.custom_gradient(lambda y: (jnp.round(4 * y) / 4, lambda g: scale * g))(x)
    )


def rule_for_a_function_of_jax(scale):
    floor = jax.custom_vjp(jnp.floor)
    floor.defvjp(lambda y: (jnp.floor(y), None), lambda _, g: (scale * g,))
    return lambda x: means(floor(4 * x) / 4)


def rule_for_a_layer_of_jax(scale):
    relu = jax.custom_jvp(jax.nn.relu)
    relu.defjvp(lambda p, t: (jax.nn.relu(p[0]), scale * t[0]))
    return lambda x: means(relu(x))


@pytest.mark.parametrize(
    "kind", [custom_gradient, rule_for_a_function_of_jax, rule_for_a_layer_of_jax]
)
def test_a_rule_of_the_users_for_a_function_of_jax_is_the_users(kind):
    labels = shown(kind(1.0)).argmax(1)
    attack = attacks.BIM(0.2, 0.1, 5)
    moved = [attack(KEY, kind(scale), IMAGES, labels).images - IMAGES for scale in (0.0, 1.0)]
    assert (moved[0] == 0).all() and (moved[1] != 0).any()


def test_programs_that_are_shared_do_not_see_what_the_first_function_closes_over():
    boxes = [{"s": jnp.ones(())}, {"s": jnp.ones(())}]
    first, second = (straight_through(lambda _, g, box=box: (g * box["s"],)) for box in boxes)
    labels = shown(first).argmax(1)
    boxes[0]["s"] = jnp.zeros(())
    moved = attacks.BIM(0.2, 0.1, 5)(KEY, second, IMAGES, labels).images - IMAGES
    assert (moved != 0).any()


def test_arrays_of_rules_are_freed():
    def evaluate():
        array = jnp.full((2, 2), 2.0)

        @jax.custom_vjp
        def product(y):
            return y @ array

        product.defvjp(lambda y: (y @ array, y), lambda _, g: (g @ array.T,))
        attacks.BIM(0.1)(KEY, lambda x: product(means(x)), IMAGES, np.zeros(8, int))
        return weakref.ref(array)

    kept = [evaluate() for _ in range(3)]
    jax.clear_caches()  # what jax itself keeps of a function with a rule
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3


def test_arrays_inside_a_backward_rule_are_compared_by_their_values():
    box = {"w": jnp.ones(())}

    def logits_fn(x):
        return straight_through(lambda _, g: (g * box["w"],))(x)

    first = jax.grad(lambda x: programs.as_argument(logits_fn, ONE)(x).sum())
    before = first(jnp.ones((1, 4, 4, 2)))
    box["w"] = 5 * jnp.ones(())
    after = jax.grad(lambda x: programs.as_argument(logits_fn, ONE)(x).sum())
    np.testing.assert_allclose(after(jnp.ones((1, 4, 4, 2))), 5 * before)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: means(x) * 2.5,
        lambda x: means(x) + 2.0,
        lambda x: jnp.sin(means(x)),
        lambda x: means(x)[:, ::-1] * 2.0,
        lambda x: x.mean((2, 1))[:, :2] * jnp.float32(2),
        lambda x: means(x.astype(jnp.bfloat16)) * 2.0,
        lambda x: jax.lax.cond(x.sum() > 0, lambda y: means(y) * 2.0, means, x),
    ],
)
def test_other_equations_are_other_programs(other):
    base = programs.as_argument(lambda x: means(x) * 2.0, ONE)
    found = programs.as_argument(other, ONE)
    assert found.code is not base.code
    images = jnp.asarray(IMAGES[:1])
    np.testing.assert_allclose(found(images), other(images), rtol=1e-6)


def test_the_sign_of_zero_and_nan_are_told_apart():
    def of(value):
        return programs.as_argument(lambda x: means(x) * value, ONE).code

    assert of(0.0) is not of(-0.0)
    assert of(float("nan")) is of(float("nan"))


def test_a_callback_is_equal_to_nothing_else():
    def of(function):
        return lambda x: jax.pure_callback(
            function, jax.ShapeDtypeStruct((x.shape[0], 2), np.float32), means(x)
        )

    one, two = of(lambda z: np.asarray(z)), of(lambda z: 2 * np.asarray(z))
    assert programs.as_argument(one, ONE).code is not programs.as_argument(two, ONE).code
    np.testing.assert_allclose(shown(two), 2 * shown(one), rtol=1e-6)


def test_a_program_refuses_other_shapes_and_types():
    program = programs.trace(means, jnp.ones((2, 4, 4, 2)))
    with pytest.raises(TypeError, match="was traced for"):
        program(jnp.ones((3, 4, 4, 2)))


def test_names_of_layers_survive():
    def logits_fn(x):
        with jax.named_scope("head"):
            return means(x) @ jnp.ones((2, 3))

    program = programs.as_argument(lambda x: jax.jit(logits_fn)(x), ONE)
    text = str(jax.make_jaxpr(program)(jnp.ones((1, 4, 4, 2))).pretty_print(name_stack=True))
    assert "head" in text


# What it costs ------------------------------------------------------------------------------------


def test_fresh_functions_share_one_compilation_and_free_their_weights():
    """A lambda for each evaluation of one network: 115 MB were kept for each."""
    labels = np.zeros(8, int)

    def evaluate(seed):
        weights = jax.random.normal(jax.random.key(seed), (2, 3))
        evaluation.attack_dataset(
            attacks.PGD(0.1, 0.05, 3), lambda x: means(x) @ weights, IMAGES, labels, key=KEY
        )
        return weakref.ref(weights)

    evaluate(0)
    before = num_compiled()
    kept = [evaluate(seed) for seed in range(1, 4)]
    assert num_compiled() == before
    gc.collect()
    assert [ref() for ref in kept] == [None] * 3


def test_a_pytree_with_its_weights_as_leaves_is_not_traced_again():
    counted = Counted(lambda weights, images: means(images) @ weights)
    logits_fn = jax.tree_util.Partial(counted, jnp.eye(2))
    assert programs.is_settled(logits_fn)
    labels = np.zeros(8, int)
    attack = attacks.PGD(0.1, 0.05, 3)
    attack(KEY, logits_fn, IMAGES, labels)
    first = len(counted.traces)
    attack(KEY, jax.tree_util.Partial(counted, 2 * jnp.eye(2)), IMAGES, labels)
    assert len(counted.traces) == first


def apply(weights, images):
    return means(images) @ weights


SCALE = 2.0


def scaled(weights, images):
    return SCALE * means(images) @ weights


def calls_scaled(weights, images):
    return scaled(weights, images)


class Settings:
    scale = 2.0


def of_a_class(weights, images):
    return Settings.scale * means(images) @ weights


def of_a_default(weights, images, *, offset=np.zeros(2)):  # noqa: B008
    return means(images) @ weights + offset


def of_itself(weights, images):
    return of_itself.scale * means(images) @ weights


of_itself.scale = 2.0


def of_an_import(weights, images):
    from counting import num_compiled

    return num_compiled() * means(images) @ weights


class Scaled(linen.Module):
    def __call__(self, images):
        return SCALE * means(images)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ScaledNode:
    weights: jax.Array

    def __call__(self, images):
        return scaled(self.weights, images)


WEIGHTS = jnp.eye(2)
UNSETTLED = (
    *(
        jax.tree_util.Partial(f, WEIGHTS)
        for f in (of_a_class, of_a_default, of_itself, of_an_import)
    ),
    Classifier(Scaled().apply, {"params": WEIGHTS}),
    ScaledNode(WEIGHTS),
    jax.tree_util.Partial(functools.wraps(Scaled().apply)(lambda w, x: scaled(w, x)), WEIGHTS),
)


@pytest.mark.parametrize(
    "function, settled",
    [
        (jax.tree_util.Partial(apply, jnp.eye(2)), True),
        (jax.tree_util.Partial(jax.jit(apply), jnp.eye(2)), True),
        (jax.tree_util.Partial(scaled, jnp.eye(2)), False),  # SCALE may change
        (jax.tree_util.Partial(calls_scaled, jnp.eye(2)), False),
        (jax.tree_util.Partial(functools.partial(apply, jnp.eye(2))), False),
        (Classifier(apply, jnp.eye(2)), True),
        (Classifier(scaled, jnp.eye(2)), False),
        (defenses.Preprocessed(Classifier(apply, jnp.eye(2)), jnp.round), True),
        (defenses.Preprocessed(Classifier(apply, jnp.eye(2)), lambda x: x * SCALE), False),
        (means, False),  # a function by itself is a leaf, and no array
        *((function, False) for function in UNSETTLED),
    ],
)
def test_which_functions_are_settled(function, settled):
    assert programs.is_settled(function) == settled


# Weights that change during a run -----------------------------------------------------------------


def attacked(attack, logits_fn, labels, path=None, progress=None):
    execution = Execution(4, "float32", path, progress)
    return evaluation.attack_dataset(
        attack, logits_fn, IMAGES, labels, key=KEY, execution=execution
    )


def test_a_change_of_weights_ends_a_run_and_keeps_what_was_found(tmp_path):
    box = {"w": jnp.asarray(np.diag([1.0, 2.0]), jnp.float32)}
    logits_fn, labels = closure(box), np.ones(8, int)
    attack = attacks.PGD(0.1, 0.02, 40)
    path = tmp_path / "state.npz"
    run = functools.partial(attacked, attack, logits_fn, labels, path)

    def changes(what, done, total):
        if done > total // 2:
            box["w"] = 3 * box["w"]

    original = box["w"]
    with pytest.raises(ValueError, match="has changed while it was being evaluated"):
        run(changes)
    with pytest.raises(ValueError, match="the classifier has other weights"):
        run()
    box["w"] = original
    resumed = run()
    path.unlink()
    whole = run()
    np.testing.assert_array_equal(resumed.images, whole.images)
    assert (resumed.success == whole.success).all()


def test_weights_of_numpy_in_a_pytree_are_watched_too():
    weights = np.eye(2, dtype=np.float32)
    logits_fn = jax.tree_util.Partial(apply, weights)

    def changes(what, done, total):
        weights[...] = 2.0

    with pytest.raises(ValueError, match="has changed"):
        attacked(attacks.PGD(0.1), logits_fn, np.zeros(8, int), progress=changes)


def test_a_state_is_never_of_weights_that_were_changed(tmp_path):
    """Weights of numpy that change while lanes are under way: what is kept is of those before."""
    weights = {"w": np.eye(2, dtype=np.float32), "big": np.zeros(1 << 22, np.float32)}
    logits_fn = jax.tree_util.Partial(lambda w, x: means(x) @ w["w"], weights)
    labels = means(IMAGES).argmax(1)
    run = functools.partial(attacked, attacks.PGD(0.02, 0.002, 60), logits_fn, labels)
    whole = run(tmp_path / "undisturbed")

    def changes(what, done, total):
        weights["w"][...] = np.eye(2)[::-1]

    with pytest.raises(ValueError, match="has changed"):
        run(tmp_path / "disturbed", changes)
    weights["w"][...] = np.eye(2)
    np.testing.assert_array_equal(run(tmp_path / "disturbed").images, whole.images)


def test_a_function_that_the_user_has_compiled_is_asked_itself():
    """`jax.jit` keeps what it has traced: a report was mixed of old weights and new ones."""
    box = {"w": jnp.eye(2)}
    logits_fn = jax.jit(lambda x: means(x) @ box["w"])
    before = shown(logits_fn)
    box["w"] = 2 * jnp.eye(2)
    np.testing.assert_allclose(shown(logits_fn), 2 * before, rtol=1e-6)
    model = Network(nnx.Rngs(0))
    model.eval()
    compiled = nnx.jit(lambda x: model(x))
    before = shown(compiled)
    model.dense.kernel[...] = 2 * model.dense.kernel[...]
    np.testing.assert_allclose(shown(compiled), 2 * before, rtol=1e-5)
