"""promot_t5x.training.stages against T5X's own Adafactor, and the split of a tree into trainable and frozen leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.models import parameter_names
from promot_t5x.training import optimizers, stages

L, F, D = 3, 130, 128  # mlp kernels [F, D] are large enough for factored second moments


def _layer(rng):
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"mlp": {"wo": {"kernel": draw(F, D)}, "wi": {"kernel": draw(8, 12)}}, "norm": {"scale": draw(D)}}


def _tree(seed, prompt=True):
    rng = np.random.default_rng(seed)
    layers = {f"layers_{i}": _layer(rng) for i in range(L)}
    tree = {
        "encoder": {**layers, "encoder_norm": {"scale": jnp.asarray(rng.normal(size=D), jnp.float32)}},
        "decoder": {f"layers_{i}": _layer(rng) for i in range(L)},
        "token_embedder": {"embedding": jnp.asarray(rng.normal(size=(140, D)), jnp.float32)},
    }
    if prompt:
        tree["soft_prompt"] = {"embedding": jnp.asarray(rng.normal(size=(1, 5, D)), jnp.float32)}
    return tree


def _stacked(tree):
    return parameter_names.unflatten(parameter_names.stack_layers(parameter_names.flatten(tree)))


@pytest.mark.parametrize(
    "kind,kwargs",
    [
        ("scaled", {"multiply_by_parameter_scale": True}),
        ("unscaled_wd", {"multiply_by_parameter_scale": False, "weight_decay_rate": 1e-5}),
    ],
)
def test_adafactor_is_t5x(testdata, kind, kwargs):
    fixture = dict(np.load(testdata / "t5x_tiny" / "adafactor_steps.npz"))

    def tree(prefix):
        return {n.removeprefix(prefix): jnp.asarray(x) for n, x in fixture.items() if n.startswith(prefix)}

    params, optimizer = tree("params/"), optimizers.adafactor(1e-2, **kwargs).build()
    assert len(params) == 8
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradients in (tree("grads_1/"), tree("grads_2/")):
        updates, state = update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    for name, expected in tree(f"{kind}/after_2/").items():
        np.testing.assert_allclose(params[name], expected, rtol=0, atol=1e-5, err_msg=name)
        # The updates are a thousand times larger than that bound: it would notice a missing one.
        assert np.max(np.abs(expected - fixture[f"params/{name}"])) > 1e-3


@pytest.mark.parametrize("stage_name", ["joint_tuning", "model_tuning"])
@pytest.mark.parametrize("scaled", [True, False])
def test_stacked_layers_are_updated_like_single_ones(stage_name, scaled):
    stage, transform = stages.stage(stage_name), optimizers.adafactor(1e-2, multiply_by_parameter_scale=scaled)
    single, stacked = _tree(0), _stacked(_tree(0))
    final = []
    for params, convert in ((single, lambda tree: tree), (stacked, _stacked)):
        trainable, frozen = stages.partition(params, stage)
        optimizer = optimizers.Staged(transform, stage)
        state, update = optimizer.init(trainable), jax.jit(optimizer.update)
        for seed in (1, 2, 3):
            # Layers of very different gradients: clipping or scaling them together would show.
            gradients = jax.tree_util.tree_map_with_path(
                lambda path, g: g * 100.0 if "layers_1" in jax.tree_util.keystr(path) else g, _tree(seed)
            )
            gradients, _ = stages.partition(convert(gradients), stage)
            updates, state = update(gradients, state, trainable)
            trainable = optax.apply_updates(trainable, updates)
        final.append(parameter_names.unstack_layers(parameter_names.flatten(stages.combine(trainable, frozen))))
    assert list(final[0]) == list(final[1])
    before = parameter_names.flatten(single)
    for name, leaf in final[0].items():
        np.testing.assert_allclose(final[1][name], leaf, rtol=1e-6, atol=1e-6, err_msg=name)
        assert np.any(leaf != before[name]) == stage.trains(name)


@pytest.mark.parametrize("name", list(stages.STAGES))
def test_partition_and_combine_are_inverse(name):
    params, stage = _tree(0), stages.stage(name)
    trainable, frozen = stages.partition(params, stage)
    flat, train, freeze = (
        parameter_names.flatten(params),
        parameter_names.flatten(trainable),
        parameter_names.flatten(frozen),
    )
    assert set(train) | set(freeze) == set(flat) and not set(train) & set(freeze)
    assert {n.startswith("soft_prompt") for n in train} == {
        "prompt_tuning": {True},
        "model_tuning": {False},
        "fine_tuning": {False},
        "joint_tuning": {True, False},
    }[name]
    joined = stages.combine(trainable, frozen)
    assert jax.tree.structure(joined) == jax.tree.structure(params)
    assert all(a is b for a, b in zip(jax.tree.leaves(joined), jax.tree.leaves(params), strict=True))


def test_labels_name_the_transform_of_each_trainable_leaf():
    params = _stacked(_tree(0))
    flat = parameter_names.flatten(optimizers.labels(params, stages.stage("joint_tuning")))
    assert flat["encoder/layers/mlp/wo/kernel"] == "encoder_layers"
    assert flat["decoder/layers/norm/scale"] == "decoder_layers"
    assert flat["encoder/encoder_norm/scale"] == flat["soft_prompt/embedding"] == "single"
    prompt_only = optimizers.labels(params, stages.stage("prompt_tuning"))
    assert parameter_names.flatten(prompt_only) == {"soft_prompt/embedding": "single"}
    assert set(parameter_names.flatten(optimizers.labels(_tree(0), stages.stage("fine_tuning"))).values()) == {"single"}


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("make", [optimizers.adafactor, optimizers.adam])
def test_optimizer_state_exists_for_trainable_leaves_only(stacked, make):
    params = _stacked(_tree(0)) if stacked else _tree(0)

    def slots(name):
        stage = stages.stage(name)
        trainable, _ = stages.partition(params, stage)
        state = optimizers.Staged(make(1e-2), stage).init(trainable)
        return [leaf for leaf in jax.tree.leaves(state) if leaf.size > L]  # without the counters

    prompt_slots = slots("prompt_tuning")
    prompt_bytes = params["soft_prompt"]["embedding"].nbytes
    assert len(prompt_slots) == (1 if make is optimizers.adafactor else 2)
    assert sum(leaf.nbytes for leaf in prompt_slots) == len(prompt_slots) * prompt_bytes
    # Model tuning owns every other slot of joint tuning: nothing belongs to no stage, and nothing to both.
    assert len(slots("joint_tuning")) == len(slots("model_tuning")) + len(prompt_slots)


@pytest.mark.parametrize("stage_name", ["prompt_tuning", "joint_tuning"])
def test_a_long_prompt_keeps_its_whole_second_moment(stage_name):
    params, stage = _tree(0), stages.stage(stage_name)
    params["soft_prompt"]["embedding"] = jnp.ones((2, 150, 512))
    optimizer = optimizers.Staged(optimizers.adafactor(1e-2), stage)
    state = optimizer.init(stages.partition(params, stage)[0])
    slots = {jax.tree_util.keystr(path): slot.shape for path, slot in jax.tree_util.tree_flatten_with_path(state)[0]}
    moments = {shape for name, shape in slots.items() if "soft_prompt" in name}
    assert moments == {(2, 150, 512), (1,)}  # v; the row and column of a factored one are left empty
    kernels = {shape for name, shape in slots.items() if "encoder" in name and "wo" in name}
    assert kernels == ({(F,), (D,), (1,)} if stage_name == "joint_tuning" else set())


def test_frozen_leaves_are_absent_from_updates():
    params, stage = _tree(0), stages.stage("prompt_tuning")
    trainable, _ = stages.partition(params, stage)
    optimizer = optimizers.Staged(optax.sgd(1.0), stage)
    updates, _ = optimizer.update(trainable, optimizer.init(trainable), trainable)
    assert list(parameter_names.flatten(updates)) == ["soft_prompt/embedding"]
    np.testing.assert_array_equal(updates["soft_prompt"]["embedding"], -params["soft_prompt"]["embedding"])


@pytest.mark.parametrize("stacked", [False, True])
def test_frozen_weights_are_held_in_bfloat16_and_the_prompt_is_not(stacked):
    params = _stacked(_tree(0)) if stacked else _tree(0)
    held, before = parameter_names.flatten(stages.held_in(params, "bfloat16")), parameter_names.flatten(params)
    assert list(held) == list(before)
    for name, leaf in held.items():
        if name == "soft_prompt/embedding":
            assert leaf is before[name]
        else:
            assert leaf.dtype == jnp.bfloat16
            np.testing.assert_array_equal(leaf, before[name].astype(jnp.bfloat16), err_msg=name)


def test_what_trains_is_absent_from_what_is_held():
    params = _tree(0)
    trainable, frozen = stages.partition(params, stages.stage("prompt_tuning"))
    held = stages.held_in(frozen, "bfloat16")
    assert held["soft_prompt"] == {"embedding": None}
    whole = stages.combine(trainable, held)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert whole["soft_prompt"]["embedding"] is params["soft_prompt"]["embedding"]
    _, frozen = stages.partition(params, stages.stage("model_tuning"))  # nothing but the prompt
    held = stages.held_in(frozen, "bfloat16")
    assert [x is y for x, y in zip(jax.tree.leaves(held), jax.tree.leaves(frozen), strict=True)] == [True]


def test_held_in_the_same_dtype_or_none_is_the_same():
    params = _tree(0)
    assert stages.held_in(params, None) is params
    held = stages.held_in(stages.held_in(params, "bfloat16"), "float32")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(held)} == {"float32"}
    same = stages.held_in(params, "float32")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), same, params))


def test_abstract_leaves_are_held_where_they_are():
    """A checkpoint is restored into them: they give the dtype and device of what is read."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), _tree(0))
    _, frozen = stages.partition(like, stages.stage("joint_tuning"))
    assert stages.held_in(frozen, "bfloat16") == frozen  # all leaves are None
    held = stages.held_in(like, "bfloat16")
    for name, leaf in parameter_names.flatten(held).items():
        expected = parameter_names.flatten(like)[name]
        assert isinstance(leaf, jax.ShapeDtypeStruct) and leaf.shape == expected.shape
        assert leaf.sharding is sharding
        assert leaf.dtype == ("float32" if name == "soft_prompt/embedding" else "bfloat16"), name


@pytest.mark.parametrize("dtype", ["float16", "int8", ""])
def test_a_dtype_no_weight_has_is_named(dtype):
    with pytest.raises(ValueError, match=f"frozen_weights_dtype is '{dtype}': expected None, float32 or bfloat16"):
        stages.held_in(_tree(0), dtype)


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="prompt_tuning trains 0 parameters.*prompt_length"):
        stages.partition(_tree(0, prompt=False), stages.stage("prompt_tuning"))
    with pytest.raises(ValueError, match="fine_tuning trains 0 parameters"):
        stages.partition({"soft_prompt": {"embedding": jnp.zeros(3)}}, stages.stage("fine_tuning"))


def test_a_custom_stage_names_subtrees_and_leaves():
    params = _tree(0)
    own = stages.Stage("own", trainable=["decoder", r"encoder/layers_[12]/.*"], frozen=r".*/scale")
    trainable, frozen = map(parameter_names.flatten, stages.partition(params, own))
    kernels = ("mlp/wi/kernel", "mlp/wo/kernel")
    expected = {f"decoder/layers_{i}/{k}" for i in range(3) for k in kernels}
    expected |= {f"encoder/layers_{i}/{k}" for i in (1, 2) for k in kernels}
    assert set(trainable) == expected and set(frozen) == set(parameter_names.flatten(params)) - expected
    assert stages.stage(own) is own and hash(own) is not None


def test_a_pattern_matches_a_whole_name_of_a_subtree_or_leaf():
    trains = stages.Stage("own", trainable="decoder").trains
    assert trains("decoder/layers_0/norm/scale")
    assert not trains("decoder_2/scale") and not trains("encoder/decoder/scale")
    alternatives = stages.Stage("own", trainable="decoder|encoder/encoder_norm").trains
    assert alternatives("encoder/encoder_norm/scale") and alternatives("decoder/layers_1/norm/scale")
    assert not alternatives("encoder/layers_0/norm/scale")


def test_a_prompt_that_is_not_attached_never_trains():
    everything = stages.Stage("own", trainable=".*", attaches_prompt=False)
    assert not everything.trains(parameter_names.PROMPT) and everything.trains("decoder/layers_0/norm/scale")


@pytest.mark.parametrize("stacked", [False, True])
def test_what_a_custom_stage_freezes_keeps_its_bits(stacked):
    params = _stacked(_tree(0)) if stacked else _tree(0)
    own = stages.Stage("own", trainable=("decoder",), frozen=(r".*/scale",), attaches_prompt=False)
    trainable, frozen = stages.partition(params, own)
    optimizer = optimizers.Staged(optimizers.adafactor(1e-2), own)
    state, update = optimizer.init(trainable), jax.jit(optimizer.update)
    for seed in (1, 2, 3):
        gradients = stages.partition(_stacked(_tree(seed)) if stacked else _tree(seed), own)[0]
        updates, state = update(gradients, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
    after, before = parameter_names.flatten(stages.combine(trainable, frozen)), parameter_names.flatten(params)
    changed = {name for name in before if np.asarray(after[name]).tobytes() != np.asarray(before[name]).tobytes()}
    assert changed == {name for name in before if name.startswith("decoder/") and name.endswith("kernel")}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            dict(trainable="layers_[0"),
            r"stages.Stage.trainable of the stage own has 'layers_\[0', which is not a regular",
        ),
        (dict(trainable=".*", frozen=(3,)), "stages.Stage.frozen of the stage own has 3, which is not a regular"),
        (dict(trainable=()), "stages.Stage.trainable of the stage own is empty: expected at least one pattern"),
    ],
)
def test_what_is_no_pattern_is_named(patterns, message):
    with pytest.raises(ValueError, match=message):
        stages.Stage("own", **patterns)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            dict(trainable="decodr"),
            "trainable of the stage own has 'decodr', which matches no parameter: .*such as decoder, encoder",
        ),
        (
            dict(trainable=".*", frozen=r"decoder/layer_\d"),
            "frozen of the stage own has .*matches no .*as decoder/layers_",
        ),
        (dict(trainable="decoder", frozen="decoder/.*"), "Stage own trains 0 parameters: .*change these patterns"),
        (dict(trainable="soft_prompt", attaches_prompt=False), "Stage own trains 0 parameters"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error(patterns, message):
    with pytest.raises(ValueError, match=message):
        stages.partition(_tree(0), stages.Stage("own", **patterns))


@pytest.mark.parametrize("name", list(stages.STAGES))
def test_what_is_stored(name):
    """Stage 1 stores its prompt alone; one that trains the model stores all of it, and an attached prompt."""
    params = _tree(0, prompt=name != "fine_tuning")
    held = parameter_names.flatten(stages.stored(*stages.partition(params, stages.stage(name))))
    everything = parameter_names.flatten(params)
    assert set(held) == ({"soft_prompt/embedding"} if name == "prompt_tuning" else set(everything))
    assert all(leaf is everything[leaf_name] for leaf_name, leaf in held.items())


def test_a_stage_that_trains_a_part_of_the_model_stores_all_of_it():
    params = _tree(0)
    own = stages.Stage("own", trainable=r"decoder/layers_2")
    held = stages.stored(*stages.partition(params, own))
    assert jax.tree.structure(held) == jax.tree.structure(params)


def test_an_unknown_stage_names_the_nearest():
    with pytest.raises(ValueError, match="'prompt_tunning' does not exist .did you mean 'prompt_tuning'"):
        stages.stage("prompt_tunning")
    with pytest.raises(ValueError, match="'xyz' does not exist; the stages are prompt_tuning, model_tuning"):
        stages.stage("xyz")


def _adam_updates(params, gradients, clip_norm, stage=stages.STAGES["joint_tuning"]):
    """Two steps, the second with a tenth of the gradients: updates of both, flat, layer by layer."""
    trainable, _ = stages.partition(params, stage)
    optimizer = optimizers.Staged(optimizers.adam(0.1, clip_norm=clip_norm), stage)
    state, update, result = optimizer.init(trainable), jax.jit(optimizer.update), []
    for scale in (1.0, 0.1):
        trained, _ = stages.partition(jax.tree.map(lambda g, scale=scale: g * scale, gradients), stage)
        updates, state = update(trained, state, trainable)
        result.append(parameter_names.unstack_layers(parameter_names.flatten(updates)))
    return result


@pytest.mark.parametrize("stage_name", ["joint_tuning", "model_tuning"])
def test_adam_clips_by_the_norm_of_all_trainable_leaves(stage_name):
    """Also where they are stacked; the gradients of one layer are large, so that a norm of each would show."""
    stage, params = stages.stage(stage_name), _tree(0)
    gradients = jax.tree_util.tree_map_with_path(
        lambda path, g: g * 100.0 if "layers_1" in jax.tree_util.keystr(path) else g, _tree(1)
    )
    trained = [g for n, g in parameter_names.flatten(gradients).items() if stage.trains(n)]
    norm = float(np.sqrt(sum(np.sum(np.float64(g) ** 2) for g in trained)))
    clip_norm = 0.5 * norm  # between the two steps' norms: the first is halved, the second is left as it is
    single = _adam_updates(params, gradients, clip_norm, stage)
    stacked = _adam_updates(_stacked(params), _stacked(gradients), clip_norm, stage)
    for actual, expected in zip(stacked, single, strict=True):
        assert list(actual) == list(expected) == [n for n in parameter_names.flatten(params) if stage.trains(n)]
        for name, leaf in expected.items():
            np.testing.assert_allclose(actual[name], leaf, rtol=1e-6, atol=1e-6, err_msg=name)
    flat = parameter_names.flatten(gradients)
    for name, leaf in single[1].items():  # Kingma and Ba 2015, algorithm 1, of the gradients 0.5 g and 0.1 g
        g = np.float64(flat[name])
        first = (0.9 * 0.1 * 0.5 * g + 0.1 * 0.1 * g) / (1 - 0.9**2)
        second = (0.999 * 0.001 * (0.5 * g) ** 2 + 0.001 * (0.1 * g) ** 2) / (1 - 0.999**2)
        np.testing.assert_allclose(leaf, -0.1 * first / (np.sqrt(second) + 1e-8), rtol=1e-3, err_msg=name)


def test_adam_clips_the_gradient_before_its_moments():
    transform = optimizers.adam(0.1, clip_norm=1.0).build()
    params = {"w": jnp.zeros(2)}
    state = transform.init(params)
    for gradient in (jnp.array([30.0, 40.0]), jnp.array([0.3, 0.4])):
        updates, state = transform.update({"w": gradient}, state, params)
    # Moments of the clipped gradients (0.6, 0.8) and (0.3, 0.4), Kingma and Ba 2015, algorithm 1.
    first = (0.9 * 0.1 * np.array([0.6, 0.8]) + 0.1 * np.array([0.3, 0.4])) / (1 - 0.9**2)
    second = (0.999 * 0.001 * np.array([0.36, 0.64]) + 0.001 * np.array([0.09, 0.16])) / (1 - 0.999**2)
    np.testing.assert_allclose(updates["w"], -0.1 * first / (np.sqrt(second) + 1e-8), rtol=1e-4)
