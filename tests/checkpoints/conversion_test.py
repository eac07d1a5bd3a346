"""The convert verb on checkpoints written by T5X: there and back again through every format, bit for bit."""

import dataclasses
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tensorstore as ts
from flax import serialization

from promot_t5x import convert
from promot_t5x.checkpoints import conversion, formats, loading, saving, soft_prompts, sources, stored_leaves
from promot_t5x.checkpoints.huggingface import config_file, peft, weights
from promot_t5x.checkpoints.t5x import reader, writer
from promot_t5x.configuration import flags, gin_files
from promot_t5x.data import vocabularies
from promot_t5x.models import architecture, parameter_names
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.tasks import toy_world

THROUGH = ["promot", "t5x", "t5x_legacy", "t5x_scanned", "t5x_scanned_legacy", "huggingface"]


def _bits(path):
    leaves = parameter_names.unstack_layers(sources.open_source(path).leaves, stored_leaves.layer)
    return {name: (leaf.shape, leaf.dtype, stored_leaves.whole(leaf).tobytes()) for name, leaf in leaves.items()}


@pytest.fixture
def t5(testdata):
    return testdata / "t5x_tiny" / "t5_orbax" / "checkpoint_0"


@pytest.fixture
def scalable(testdata):
    return testdata / "t5x_tiny" / "scalable_t5_legacy" / "checkpoint_0"


@pytest.mark.parametrize("through", THROUGH)
def test_round_trip(t5, tmp_path, through):
    conversion.convert_checkpoint(str(t5), str(tmp_path / "there" / "checkpoint_5"), through)
    conversion.convert_checkpoint(
        str(tmp_path / "there" / "checkpoint_5"), str(tmp_path / "checkpoint_9"), "t5x_legacy"
    )
    assert _bits(tmp_path / "checkpoint_9") == _bits(t5)


@pytest.mark.parametrize("through", ["promot", "t5x_scanned", "huggingface"])
def test_tables_of_each_layer_survive(scalable, tmp_path, through):
    conversion.convert_checkpoint(str(scalable), str(tmp_path / "there" / "checkpoint_5"), through)
    conversion.convert_checkpoint(
        str(tmp_path / "there" / "checkpoint_5"), str(tmp_path / "checkpoint_9"), "t5x_scanned_legacy"
    )
    written = reader.read(tmp_path / "checkpoint_9")
    expected = reader.read(scalable)
    assert written.keys() == expected.keys()
    for name, leaf in expected.items():
        assert stored_leaves.whole(leaf).tobytes() == stored_leaves.whole(written[name]).tobytes(), name


def test_legacy_arrays_have_the_bytes_that_t5x_wrote(scalable, tmp_path):
    conversion.convert_checkpoint(str(scalable), str(tmp_path / "checkpoint_0"), "t5x_scanned_legacy")
    for folder in scalable.glob("target.*"):
        written, expected = (
            ts.open({"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}}).result().read().result()
            for path in (tmp_path / "checkpoint_0" / folder.name, folder)
        )
        assert written.shape == expected.shape and written.tobytes() == expected.tobytes(), folder.name


def test_different_tables_do_not_fit_a_layout_that_shares_one(scalable, tmp_path):
    with pytest.raises(ValueError, match="have different tables of relative positions"):
        conversion.convert_checkpoint(str(scalable), str(tmp_path / "out"), "t5x")
    assert not (tmp_path / "out" / "checkpoint_0" / "checkpoint").exists()


def test_logits_are_compared_when_asked_for(t5, tmp_path, capsys):
    conversion.convert_checkpoint(str(t5), str(tmp_path / "hf"), "huggingface", check_logits=True)
    assert "largest difference 0.00e+00" in capsys.readouterr().out


def test_a_dry_run_prints_names_and_writes_nothing(t5, tmp_path, capsys):
    conversion.convert_checkpoint(str(t5), str(tmp_path / "hf"), "huggingface", dry_run=True)
    stdout = capsys.readouterr().out
    row = next(line for line in stdout.splitlines() if line.startswith("encoder/layers_0/mlp/wi_0/kernel "))
    assert row.split() == [
        *("encoder/layers_0/mlp/wi_0/kernel", "[32,", "64]", "->"),
        *("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", "float32", "[64,", "32]"),
    ]
    assert not (tmp_path / "hf").exists()


def test_nothing_is_written_over(t5, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        conversion.convert_checkpoint(str(t5), str(tmp_path), "promot")
    assert (tmp_path / "file").read_text() == "mine"


def test_paths_without_a_checkpoint(t5, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        conversion.convert_checkpoint(str(tmp_path / "nothing"), str(tmp_path / "out"), "promot")
    with pytest.raises(ValueError, match="it holds checkpoint_0: give the path of one"):
        conversion.convert_checkpoint(str(t5.parent), str(tmp_path / "out"), "promot")


def test_a_damaged_source_leaves_no_checkpoint(t5, testdata, tmp_path):
    copy = tmp_path / "checkpoint_1"
    shutil.copytree(testdata / "t5x_tiny" / "t5_legacy" / "checkpoint_0", copy)
    chunk = copy / "target.decoder.layers_1.mlp.wo.kernel" / "0.0"
    chunk.chmod(0o644)
    chunk.write_bytes(chunk.read_bytes()[:100])
    for name in ("promot", "t5x_legacy", "huggingface"):
        target = tmp_path / name / "checkpoint_1"
        with pytest.raises(ValueError, match="layers_1.mlp.wo.kernel is damaged"):
            conversion.convert_checkpoint(str(copy), str(target), name)
        with pytest.raises((FileNotFoundError, ValueError), match="no checkpoint at|neither a checkpoint nor"):
            sources.open_source(target)


@pytest.mark.parametrize("to_format", ["promot", "t5x_legacy", "huggingface"])
def test_nothing_half_written_stays(testdata, tmp_path, to_format):
    copy = tmp_path / "source" / "checkpoint_1"
    shutil.copytree(testdata / "t5x_tiny" / "t5_legacy" / "checkpoint_0", copy)
    (copy / "target.token_embedder.embedding" / "0.0").write_bytes(b"")
    with pytest.raises(ValueError, match="target.token_embedder.embedding is damaged"):
        conversion.convert_checkpoint(str(copy), str(tmp_path / "out"), to_format)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("lost", ["encoder/layers_1/pre_mlp_layer_norm", "decoder/relpos_bias", "encoder/layers_0/mlp"])
def test_a_checkpoint_that_lacks_a_leaf_is_not_converted(testdata, tmp_path, lost):
    copy = tmp_path / "checkpoint_1"
    shutil.copytree(testdata / "t5x_tiny" / "t5_legacy" / "checkpoint_0", copy)
    content = serialization.msgpack_restore((copy / "checkpoint").read_bytes())
    *parents, last = lost.split("/")
    subtree = content["optimizer"]["target"]
    for name in parents:
        subtree = subtree[name]
    del subtree[last]
    (copy / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    with pytest.raises(ValueError, match=f"checkpoint_1 (.|\\n)*{lost}"):
        conversion.convert_checkpoint(str(copy), str(tmp_path / "out"), "promot")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("array", [np.ones((3, 32), int), np.ones((0, 32), np.float32), np.full((3, 32), "a")])
def test_arrays_that_are_no_prompt(tmp_path, array):
    np.save(tmp_path / "prompt.npy", array)
    for to_format in ("npy", "soft_prompt"):
        with pytest.raises(ValueError, match="prompt.npy holds .*, expected a prompt of at least one vector in one of"):
            conversion.convert_soft_prompt(str(tmp_path / "prompt.npy"), str(tmp_path / "out"), to_format)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "3", '{"base": "x"}', '{"base": [1]}', "\xff"])
def test_a_damaged_description_of_a_prompt(tuned, tmp_path, text):
    _, folder = tuned
    (folder / "soft_prompt.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="soft_prompt.json is damaged, it .*; copy it again"):
        conversion.convert_soft_prompt(str(folder), str(tmp_path / "out.npy"), "npy")


def test_a_prompt_that_names_itself_as_its_model(tmp_path):
    prompt = {"soft_prompt": {"embedding": np.ones((1, 3, 32), np.float32)}}
    named = {"path": str(tmp_path / "prompt"), "fingerprint": "0" * 16}
    saving.export(tmp_path / "prompt", prompt, {"step": 1, "base": named})
    with pytest.raises(ValueError, match="names itself as its model"):
        sources.open_source(tmp_path / "prompt")


def test_prompts_that_name_each_other_as_their_model(tmp_path):
    prompt = {"soft_prompt": {"embedding": np.ones((1, 3, 32), np.float32)}}
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        named = {"path": str(tmp_path / other), "fingerprint": "0" * 16}
        saving.export(tmp_path / name, prompt, {"step": 1, "base": named})
    with pytest.raises(
        ValueError, match="b holds a soft prompt alone and names itself .*, through .*c, through .*a; copy"
    ):
        sources.open_source(tmp_path / "b")


def test_what_was_written_is_compared(t5, tmp_path, monkeypatch):
    honest = formats.written_leaves

    def changed(folder, like):
        leaves = honest(folder, like)
        array = stored_leaves.whole(leaves["token_embedder/embedding"]).copy()
        array[3, 3] = np.nextafter(array[3, 3], np.float32(9))
        return {**leaves, "token_embedder/embedding": stored_leaves.from_array(array, "the copy")}

    monkeypatch.setattr(formats, "written_leaves", changed)
    with pytest.raises(ValueError, match="The numbers written to the copy differ from those in"):
        conversion.convert_checkpoint(str(t5), str(tmp_path / "out"), "promot")


# --- the network ---

DEMO = pathlib.Path(conversion.__file__).parents[1] / "demo_checkpoint"


def test_the_demo_checkpoint_carries_the_network_that_it_was_trained_as():
    gin_files.parse(["models/toy.gin"], [], [])
    trained = gin_files.configurable(architecture.T5Config, "architecture.T5Config")()
    assert sources.open_source(DEMO).config == dataclasses.replace(trained, prompt_length=0)
    metadata = saving.read_metadata(DEMO)
    vocabulary = vocabularies.description(toy_world.vocabulary())
    assert metadata["vocabulary"] == {"name": vocabulary["name"], "hash": vocabulary["hash"]}


def test_the_network_travels_through_every_format_that_states_it(tmp_path):
    conversion.convert_checkpoint(str(DEMO), str(tmp_path / "hf"), "huggingface", check_logits=True)
    values = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (values["relative_attention_max_distance"], values["dropout_rate"]) == (64, 0.0)
    conversion.convert_checkpoint(str(tmp_path / "hf"), str(tmp_path / "ours"), "promot")
    conversion.convert_checkpoint(str(DEMO), str(tmp_path / "copy"), "promot")
    demo = saving.read_metadata(DEMO)
    for folder in ("ours", "copy"):
        assert saving.read_metadata(tmp_path / folder)["network"] == demo["network"]
    assert saving.read_metadata(tmp_path / "copy")["vocabulary"] == demo["vocabulary"]


def test_a_network_that_was_not_kept_is_an_error(tmp_path, monkeypatch):
    honest = config_file.values_of
    monkeypatch.setattr(
        config_file, "values_of", lambda *args: {**honest(*args), "relative_attention_max_distance": 128}
    )
    with pytest.raises(ValueError, match="relative_bias_max_distance is 128, the configuration has 64"):
        conversion.convert_checkpoint(str(DEMO), str(tmp_path / "hf"), "huggingface")


def test_what_a_format_does_not_state_can_be_given(t5, tmp_path, capsys):
    conversion.convert_checkpoint(str(t5), str(tmp_path / "assumed"), "huggingface")
    assert "assumed, as in the public models: mlp_activations" in capsys.readouterr().out
    fields = convert.network_fields(["relative_bias_max_distance=64", "mlp_activations=silu,linear", "dropout_rate=0"])
    conversion.convert_checkpoint(str(t5), str(tmp_path / "given"), "huggingface", network=fields)
    assert "assumed" not in capsys.readouterr().out
    values = json.loads((tmp_path / "given" / "config.json").read_text())
    assert values["relative_attention_max_distance"] == 64
    assert (values["feed_forward_proj"], values["dropout_rate"]) == ("gated-silu", 0.0)
    with pytest.raises(ValueError, match="T5Config.relative_bias_max_distance is 64, the configuration has 32"):
        sources.open_source(tmp_path / "given", {"relative_bias_max_distance": 32})
    for wrong in ("relative_bias_max_distance=far", "mlp_activations=tanh", "vocab_size=3", "dropout_rte=0.1"):
        with pytest.raises(flags.ConfigError, match=f"--network={wrong} "):
            convert.network_fields([wrong])


def test_a_checkpoint_written_without_its_network_needs_what_shapes_do_not_show(t5, tmp_path):
    conversion.convert_checkpoint(str(t5), str(tmp_path / "ours"), "promot")
    file = tmp_path / "ours" / "metadata" / "metadata"
    metadata = json.loads(file.read_text())
    file.write_text(json.dumps({key: metadata[key] for key in ("format", "score", "step", "base")}))
    with pytest.raises(ValueError, match="written before checkpoints carried their network"):
        conversion.convert_checkpoint(str(tmp_path / "ours"), str(tmp_path / "never"), "huggingface")
    fields = {"mlp_activations": ("gelu", "linear"), "relative_bias_max_distance": 128}
    conversion.convert_checkpoint(str(tmp_path / "ours"), str(tmp_path / "hf"), "huggingface", network=fields)
    assert _bits(tmp_path / "hf") == _bits(t5)


# --- soft prompts ---


@pytest.fixture
def tuned(t5, tmp_path):
    """(prompt [1, 8, 32], a folder that says it was trained on the fixture's model)"""
    prompt = np.random.default_rng(0).normal(size=(1, 8, 32)).astype(np.float32)
    base = {"path": str(t5), "fingerprint": sources.open_source(t5).fingerprint}
    soft_prompts.save(tmp_path / "tuned", prompt, {"base": base})
    return prompt, tmp_path / "tuned"


def test_fingerprint_is_that_of_the_loaded_model(t5):
    sizes = sources.open_source(t5).config
    for scan_layers in (False, True):
        model = EncoderDecoderModel(dataclasses.replace(sizes, scan_layers=scan_layers))
        loaded = loading.load(t5, model, Partitioner())
        assert sources.open_source(t5).fingerprint == loaded.base_fingerprint


def test_a_prompt_next_to_huggingfaces_weights_is_left_out_aloud_or_attached(t5, tuned, tmp_path, capsys):
    prompt, folder = tuned
    conversion.convert_checkpoint(str(t5), str(tmp_path / "hf"), "huggingface", prompt_path=str(folder))
    adapter = tmp_path / "hf" / "soft_prompt_adapter"
    assert "left out" not in capsys.readouterr().out
    conversion.convert_checkpoint(str(tmp_path / "hf"), str(tmp_path / "alone"), "promot")
    assert f"the soft prompt in {adapter} is left out" in capsys.readouterr().out
    conversion.convert_checkpoint(str(tmp_path / "hf"), str(tmp_path / "both"), "promot", prompt_path=str(adapter))
    assert "left out" not in capsys.readouterr().out
    conversion.convert_soft_prompt(str(tmp_path / "both"), str(tmp_path / "again.npy"), "npy")
    assert np.load(tmp_path / "again.npy").tobytes() == prompt.tobytes()


@pytest.mark.parametrize("to_format", THROUGH)
def test_an_attached_prompt_travels_with_the_model(t5, tuned, tmp_path, to_format):
    prompt, folder = tuned
    conversion.convert_checkpoint(
        str(t5), str(tmp_path / "with"), to_format, prompt_path=str(folder), check_logits=True
    )
    written = tmp_path / "with" / ("checkpoint_0" if to_format.startswith("t5x") else "")
    if to_format == "huggingface":
        written = written / formats.ADAPTER
    conversion.convert_soft_prompt(str(written), str(tmp_path / "again.npy"), "npy")
    assert np.load(tmp_path / "again.npy").tobytes() == prompt.tobytes()


def test_a_prompt_of_another_model_is_refused_and_can_be_forced(scalable, tuned, tmp_path):
    prompt, folder = tuned
    with pytest.raises(
        ValueError, match="was trained on a model with fingerprint .* give the prompt.s own model, or --force"
    ):
        conversion.convert_checkpoint(str(scalable), str(tmp_path / "out"), "promot", prompt_path=str(folder))
    conversion.convert_checkpoint(str(scalable), str(tmp_path / "out"), "promot", prompt_path=str(folder), force=True)
    assert (
        stored_leaves.whole(sources.open_source(tmp_path / "out").leaves[parameter_names.PROMPT]).tobytes()
        == prompt.tobytes()
    )


def test_a_checkpoint_of_a_prompt_alone_brings_its_model_and_no_other(t5, tuned, tmp_path):
    prompt, _ = tuned
    base = tmp_path / "base"  # with a prompt of its own, which is not the one that was tuned
    np.save(tmp_path / "old.npy", np.zeros((8, 32), np.float32))
    conversion.convert_checkpoint(str(t5), str(base), "promot", prompt_path=str(tmp_path / "old.npy"))
    base_metadata = {"path": str(base), "fingerprint": sources.open_source(base).fingerprint}
    saving.export(tmp_path / "stage1", {"soft_prompt": {"embedding": prompt}}, {"step": 3, "base": base_metadata})
    conversion.convert_checkpoint(str(tmp_path / "stage1"), str(tmp_path / "out"), "t5x_legacy")
    written = sources.open_source(tmp_path / "out" / "checkpoint_3").leaves
    assert stored_leaves.whole(written[parameter_names.PROMPT]).tobytes() == prompt.tobytes()
    wrong = {"path": str(base), "fingerprint": "0" * 16}
    saving.export(tmp_path / "moved", {"soft_prompt": {"embedding": prompt}}, {"step": 3, "base": wrong})
    with pytest.raises(ValueError, match="put the original model back"):
        conversion.convert_checkpoint(str(tmp_path / "moved"), str(tmp_path / "never"), "promot")


def test_a_prompt_of_another_width_is_refused_even_if_forced(t5, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((8, 64), np.float32))
    with pytest.raises(ValueError, match="is 64 wide, the model in .* is 32 wide"):
        conversion.convert_checkpoint(
            str(t5), str(tmp_path / "out"), "promot", prompt_path=str(tmp_path / "wide.npy"), force=True
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["rte", "mrpc", "sst2"])
def test_prompts_of_the_prompt_tuning_code_in_and_out(testdata, tmp_path, task):
    folder = testdata / "prompt_tuning_t5x" / "pretrained_prompts" / "t5_1_1_lm100k_base"
    path = str(folder / f"{task}.npy")
    for number, to_format in enumerate(("soft_prompt", "peft", "npy")):
        target = str(tmp_path / (f"{number}.npy" if to_format == "npy" else f"{number}"))
        conversion.convert_soft_prompt(path, target, to_format)
        path = target
    assert np.load(path).tobytes() == np.load(folder / f"{task}.npy").tobytes()


@pytest.mark.parametrize("to_format", ["soft_prompt", "peft", "npy"])
def test_a_dry_run_writes_no_prompt(tmp_path, capsys, to_format):
    np.save(tmp_path / "prompt.npy", np.ones((8, 32), np.float32))
    arguments = [f"--from={tmp_path}/prompt.npy", f"--to={tmp_path}/new.npy", f"--to_format={to_format}"]
    convert.main([*arguments, "--dry_run"])
    assert f"-> {tmp_path}/new.npy ({to_format}): (1, 8, 32) float32\n" in capsys.readouterr().out
    assert not (tmp_path / "new.npy").exists()
    np.save(tmp_path / "prompt.npy", np.ones((2, 8, 32), np.float32))
    if to_format == "peft":
        with pytest.raises(ValueError, match="2 soft prompts, but a PEFT adapter holds one"):
            convert.main([*arguments, "--dry_run"])


@pytest.mark.parametrize(
    "flag",
    [
        "--network=dropout_rate=0.1",
        "--soft_prompt=other.npy",
        "--force",
        "--vocabulary_file=a.model",
        "--extra_ids=0",
        "--check-logits",
    ],
)
def test_a_prompt_alone_refuses_the_flags_of_whole_checkpoints(tmp_path, flag):
    np.save(tmp_path / "prompt.npy", np.ones((8, 32), np.float32))
    with pytest.raises(flags.ConfigError, match=f"--to_format=npy writes .*{flag.split('=')[0]} cannot apply"):
        convert.main([f"--from={tmp_path}/prompt.npy", f"--to={tmp_path}/new.npy", "--to_format=npy", flag])
    assert not (tmp_path / "new.npy").exists()


def test_a_checkpoint_without_a_prompt_gives_none(t5, tmp_path):
    with pytest.raises(ValueError, match="holds no soft prompt"):
        conversion.convert_soft_prompt(str(t5), str(tmp_path / "prompt.npy"), "npy")
    assert not (tmp_path / "prompt.npy").exists()


# --- the source's dtype ---


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_hugging_face_through_ours_and_back_keeps_every_byte(t5, tmp_path, dtype):
    source = sources.open_source(t5)
    in_dtype = {
        name: stored_leaves.from_array(stored_leaves.whole(leaf).astype(np.dtype(dtype)), name)
        for name, leaf in source.leaves.items()
    }
    weights.write(tmp_path / "first", in_dtype, source.config)
    conversion.convert_checkpoint(str(tmp_path / "first"), str(tmp_path / "ours"), "promot")
    conversion.convert_checkpoint(str(tmp_path / "ours"), str(tmp_path / "second"), "huggingface")
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_t5x_in_bfloat16_keeps_every_bit(t5, tmp_path):
    source = sources.open_source(t5)
    leaves = {
        n: stored_leaves.from_array(stored_leaves.whole(x).astype(jnp.bfloat16), n) for n, x in source.leaves.items()
    }
    writer.write_legacy(tmp_path / "checkpoint_3", leaves, step=3)
    conversion.convert_checkpoint(str(tmp_path / "checkpoint_3"), str(tmp_path / "ours"), "promot")
    conversion.convert_checkpoint(str(tmp_path / "ours"), str(tmp_path / "again"), "t5x")
    assert _bits(tmp_path / "again" / "checkpoint_3") == _bits(tmp_path / "checkpoint_3")


# --- as INITIAL_CHECKPOINT_PATH ---


@pytest.mark.parametrize("to_format", THROUGH)
def test_training_starts_from_every_format(t5, tmp_path, to_format):
    conversion.convert_checkpoint(str(t5), str(tmp_path / "checkpoint_2"), to_format)
    model = EncoderDecoderModel(dataclasses.replace(sources.open_source(t5).config, scan_layers=True))
    expected, loaded = (loading.load(path, model, Partitioner()) for path in (t5, tmp_path / "checkpoint_2"))
    assert loaded.base_fingerprint == expected.base_fingerprint
    wider = EncoderDecoderModel(dataclasses.replace(model.config, mlp_dim=128))
    with pytest.raises(ValueError, match="does not hold this network's parameters"):
        loading.load(tmp_path / "checkpoint_2", wider, Partitioner())


@pytest.mark.parametrize("to_format", ["t5x", "t5x_legacy", "huggingface"])
def test_training_does_not_start_from_numbers_that_are_not_finite(t5, tmp_path, to_format):
    source = sources.open_source(t5)
    array = stored_leaves.whole(source.leaves["decoder/layers_1/mlp/wo/kernel"]).copy()
    array[5, 5] = np.nan
    source.leaves["decoder/layers_1/mlp/wo/kernel"] = stored_leaves.from_array(array, "broken")
    formats.write(tmp_path / "checkpoint_2", source, to_format)
    with pytest.raises(ValueError, match=r"checkpoint_2.* holds numbers that are not finite"):
        loading.load(tmp_path / "checkpoint_2", EncoderDecoderModel(source.config), Partitioner())


@pytest.mark.parametrize("to_format", ["hugginface", "soft_prompt", ""])
def test_an_unknown_format_writes_nothing(tmp_path, to_format):
    with pytest.raises(ValueError, match=f"The format to write is {to_format!r}.*; expected one of promot, t5x"):
        conversion.convert_checkpoint(str(DEMO), str(tmp_path / "out"), to_format)
    with pytest.raises(ValueError, match="The format to write is 'promot'; expected one of soft_prompt, npy, peft"):
        conversion.convert_soft_prompt(str(DEMO), str(tmp_path / "out"), "promot")
    assert not any(tmp_path.iterdir())


def test_a_prompt_that_is_not_finite_is_attached_to_nothing(tmp_path):
    prompt = np.ones((1, 3, 128), np.float32)
    prompt[0, 1, 2] = np.nan
    np.save(tmp_path / "prompt.npy", prompt)
    (tmp_path / "folder").mkdir()
    safetensors.numpy.save_file({parameter_names.PROMPT: prompt}, tmp_path / "folder" / soft_prompts.WEIGHTS)
    peft.write_adapter(tmp_path / "adapter", prompt[0], "")
    before = sorted(path.name for path in tmp_path.iterdir())
    for name in before:
        with pytest.raises(ValueError, match=f"{name}.* holds numbers that are not finite"):
            conversion.convert_checkpoint(str(DEMO), str(tmp_path / "out"), "promot", prompt_path=str(tmp_path / name))
        with pytest.raises(ValueError, match="not finite"):
            conversion.convert_soft_prompt(str(tmp_path / name), str(tmp_path / "out"), "npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_fields_that_no_network_has(tmp_path):
    with pytest.raises(ValueError, match=r"T5Config has no field 'dropout' \(did you mean 'dropout_rate'"):
        conversion.convert_checkpoint(str(DEMO), str(tmp_path / "out"), "promot", network={"dropout": 0.1})
