"""Models of Hugging Face Transformers, made here with random weights: loaded, checked, adapted, kept frozen."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models.contract import ModelContract
from tests.support.recorded_graph import RecordedGraph
from tests.support.small_models import save
from tests.support.small_training import drawn, trained
from workflow_lib import config, data, models, plan
from workflow_lib.cli import main
from workflow_lib.config.run import Model
from workflow_lib.data import ModelSpec
from workflow_lib.data.padding import exchanged
from workflow_lib.distributed.ranks import Peers, Ranks
from workflow_lib.errors import ConfigError
from workflow_lib.plan import user_code
from workflow_lib.results import layout
from workflow_lib.training.state import State

TEXT = ModelSpec((12,), 20, "language")
IMAGES = ModelSpec((1, 8, 8), 10, scale=255.0, mean=(0.3,), std=(0.2,))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("saved")
    return {kind: save(place / kind, kind) for kind in ("gpt2", "llama", "bert", "vit")}


class Saved(ModelContract):
    """A model of a folder that is saved before the tests."""

    name = "transformers"
    kind = "llama"
    settings: dict[str, Any] = {}

    @pytest.fixture(autouse=True)
    def folder(self, folders: dict[str, Path]) -> None:
        type(self).params = {"path": str(folders[self.kind]), **self.settings}


class TestLanguage(Saved):
    settings = {"weights": "random"}
    shapes = [(16,)]
    tasks = ("language",)


class TestImages(Saved):
    kind = "vit"
    shapes = [(1, 8, 8)]
    tasks = ("classification",)


class TestTexts(Saved):
    kind = "bert"
    shapes = [(12,)]
    tasks = ("text_classification",)


def test_steps_with_images_are_computed_by_a_graph_with_the_same_bits(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = {"model": {"name": "transformers", "params": {"path": str(folders["vit"])}}}
    spec, graph = ModelSpec((1, 8, 8), 4), RecordedGraph()
    found = trained(tmp_path / "graph", settings, graph, spec=spec, split=drawn(spec))
    assert graph.replays == 9
    assert found == trained(tmp_path / "steps", settings, spec=spec, split=drawn(spec))


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("llama", ModelSpec((8,), 20, "language")),
        ("bert", ModelSpec((8,), 3, "text_classification", vocabulary=40)),
    ],
)
def test_steps_with_tokens_are_computed_one_by_one(
    folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, spec: ModelSpec
) -> None:
    """Transformers looks at positions and padding before it chooses how to compute the attention."""
    settings = {"model": {"name": "transformers", "params": {"path": str(folders[kind])}}}
    graph = RecordedGraph()
    trained(tmp_path, settings, graph, spec=spec, split=drawn(spec))
    assert graph.replays == 0
    assert "steps are not computed by a CUDA graph: the step waits for the GPU at" in caplog.text
    assert "masking_utils.py, line" in caplog.text


def built(folder: Path, spec: ModelSpec, **params: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return models.build(Model.model_validate({"name": "transformers", "params": {"path": folder, **params}}), spec)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_weights_of_the_folder_compute_as_in_transformers(folders: dict[str, Path], kind: str) -> None:
    network = built(folders[kind], TEXT).eval()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folders[kind]).eval()
    tokens = torch.randint(20, (3, 12))
    assert torch.equal(network(tokens), theirs(tokens).logits)
    assert network.state_dict().keys() == theirs.state_dict().keys()


def test_images_are_normalised_as_the_weights_need_it(folders: dict[str, Path]) -> None:
    network = built(folders["vit"], IMAGES).eval()
    pixels = torch.randint(256, (3, 1, 8, 8))
    settings = transformers.AutoConfig.from_pretrained(folders["vit"], num_labels=10)
    theirs = transformers.AutoModelForImageClassification.from_config(settings)
    theirs.load_state_dict(network.state_dict())
    prepared = (pixels / 255 - 0.4) / 0.3
    normalised = (pixels / 255 - 0.3) / 0.2
    torch.testing.assert_close(network(normalised), theirs.eval()(prepared).logits)


def test_a_larger_vocabulary_than_the_tokenizer_has_gives_no_outputs(folders: dict[str, Path]) -> None:
    assert built(folders["gpt2"], ModelSpec((12,), 18, "language"))(torch.zeros(2, 12).long()).shape == (2, 12, 18)


def saved(folder: Path, config: Any, kind: str) -> Path:
    """Save a small model of the configuration with random weights."""
    getattr(transformers, kind).from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("weights", ["pretrained", "random"])
def test_a_language_model_never_sees_the_token_that_it_predicts(folders: dict[str, Path], weights: str) -> None:
    network = built(folders["bert"], ModelSpec((12,), 40, "language"), weights=weights).eval()
    tokens = torch.randint(1, 40, (1, 12))
    other = tokens.clone()
    other[0, -1] = 0
    assert torch.equal(network(tokens)[:, :-1], network(other)[:, :-1])


def test_a_model_that_would_see_the_next_token_is_rejected(tmp_path: Path) -> None:
    settings = transformers.XLNetConfig(vocab_size=20, d_model=16, n_layer=1, n_head=2, d_inner=16)
    folder = saved(tmp_path, settings, "AutoModelForCausalLM")
    with pytest.raises(ConfigError, match="its outputs for a token depend on later tokens"):
        built(folder, TEXT)


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}


def test_positions_that_are_counted_from_the_padding_token_on_limit_the_length(tmp_path: Path) -> None:
    settings = transformers.RobertaConfig(**SIZES, max_position_embeddings=13, pad_token_id=0)
    folder = saved(tmp_path, settings, "AutoModelForSequenceClassification")
    texts = ModelSpec((13,), 2, "text_classification", vocabulary=20)
    with pytest.raises(ConfigError, match="reads at most 12 tokens, and the data has texts of 13"):
        built(folder, texts)
    tokens = torch.randint(1, 20, (3, 12))
    tokens[0, 5:] = 0
    network = built(folder, replace(texts, input_shape=(12,))).eval()
    torch.testing.assert_close(network(tokens)[:1], network(tokens[:1, :5]))
    # the tokens of a language model fill nothing: each has a place of its own
    language = built(folder, ModelSpec((12,), 20, "language"), weights="random").eval()
    assert not torch.allclose(*language(torch.zeros(1, 2).long())[0], rtol=1e-3)


@pytest.mark.parametrize(("kind", "theirs"), [("Roberta", 1), ("GPT2", None)])
def test_texts_are_filled_with_the_token_of_the_tokenizer(tmp_path: Path, kind: str, theirs: int | None) -> None:
    sizes = SIZES if kind == "Roberta" else {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20}
    settings = getattr(transformers, f"{kind}Config")(**sizes, pad_token_id=theirs)
    folder = saved(tmp_path, settings, "AutoModelForSequenceClassification")
    filling = 7 if theirs is None else theirs
    padding = {"strategy": "BatchLongest", "pad_id": filling, "pad_token": "<pad>"}
    spec = ModelSpec((12,), 2, "text_classification", vocabulary=20, tokenizer=json.dumps({"padding": padding}))
    network = built(folder, spec).eval()
    tokens = torch.randint(0, 20, (3, 12))
    tokens[tokens == filling] = 2
    tokens[0, 5:] = filling
    tokens[1, 3] = 0
    settings.pad_token_id = filling
    original = transformers.AutoModelForSequenceClassification.from_pretrained(folder, config=settings).eval()
    expected = original(input_ids=tokens, attention_mask=(tokens != filling).long()).logits
    assert torch.equal(network(torch.from_numpy(exchanged(tokens.numpy(), filling))), expected)
    if theirs is not None:
        with pytest.raises(ConfigError, match="fills texts with token 1, and the data with 0; name the token"):
            built(folder, replace(spec, tokenizer=""))


def test_a_model_with_a_mask_of_its_own_is_checked_without_memory(tmp_path: Path) -> None:
    settings = transformers.BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2)
    folder = saved(tmp_path, settings, "AutoModelForSequenceClassification")
    with torch.device("meta"):
        network = built(folder, ModelSpec((12,), 2, "text_classification", vocabulary=20))
        assert network(torch.zeros(2, 12).long()).shape == (2, 2)


def test_an_encoder_with_a_decoder_is_rejected_for_texts_with_classes(tmp_path: Path) -> None:
    settings = transformers.T5Config(vocab_size=20, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=16)
    settings.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is an encoder with a decoder; use an encoder such as BERT"):
        built(tmp_path, ModelSpec((12,), 2, "text_classification", vocabulary=20))


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("gpt2", ModelSpec((17,), 20, "language"), "reads at most 16 tokens, and the data has texts of 17"),
        ("gpt2", ModelSpec((12,), 21, "language"), "its vocab_size is 20, and the data needs 21"),
        ("vit", ModelSpec((3, 8, 8), 10), "its num_channels is 1, and the data needs 3"),
        ("vit", ModelSpec((1, 16, 16), 10), "its image_size is 8, and the data needs 16"),
        ("vit", ModelSpec((1, 8, 8), 10, mean=(0.0,), std=(1.0,)), "the weights are for pixels from 0 to 1"),
        ("vit", TEXT, "is no model for CausalLM"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_rejected(
    folders: dict[str, Path], kind: str, spec: ModelSpec, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        built(folders[kind], spec)


def test_validate_compares_the_model_with_prepared_data(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()
    small = save(tmp_path / "small", "gpt2", vocab_size=19)
    for folder, expected in ((small, "its vocab_size is 19, and the data needs 20"), (folders["gpt2"], "valid; 1 run")):
        model = {"name": "transformers", "params": {"path": str(folder), "lora": {"r": 1}}}
        source = {"name": "tests.plugins.small", "params": {"kind": "tokens"}}
        Path("x.yaml").write_text(json.dumps({"name": "x", "data": source, "model": model}))
        experiment = config.load([Path("x.yaml")])
        (run,) = plan.expand(experiment)
        manifest = layout.data_manifest(Path("results/x"), run.data_id)
        if not manifest.exists():
            assert main(["validate", "x.yaml"]) == 0
            assert "only the training can tell whether transformers fits the data, which is" in capsys.readouterr().out
            data.preprocess(experiment, run.data_id, Path("work"), manifest)
        main(["validate", "x.yaml"])
        told = capsys.readouterr()
        assert expected in told.out + told.err
        assert "only the training" not in told.out


def test_images_of_another_size_than_the_weights_saw_are_rejected(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["vit"], tmp_path, dirs_exist_ok=True)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"size": {"height": 9, "width": 9}}))
    with pytest.raises(ConfigError, match="its weights are for images of 9x9 .*, and those of the data have 8x8"):
        built(tmp_path, IMAGES)
    assert built(tmp_path, IMAGES, weights="random") is not None


def tokenizer(words: list[str]) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    return Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))


def test_tokens_of_another_tokenizer_than_that_of_the_weights_are_rejected(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(folders["gpt2"], tmp_path, dirs_exist_ok=True)
    words = [f"word{number}" for number in range(20)]
    tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    same, other = tokenizer(words).to_str(), tokenizer(words[::-1]).to_str()
    assert built(tmp_path, replace(TEXT, tokenizer=same)) is not None
    assert built(tmp_path, TEXT) is not None  # tokens without a tokenizer, as many as it has
    for spec, message in (
        (replace(TEXT, tokenizer=other), "the data was made with another tokenizer; let the data use this file"),
        (replace(TEXT, outputs=19), "the data has 19 tokens; let the data use this file"),
    ):
        with pytest.raises(ConfigError, match=message):
            built(tmp_path, spec)
        assert built(tmp_path, spec, weights="random") is not None


def test_pickled_weights_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["gpt2"], tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="has no weights in safetensors files"):
        built(tmp_path, TEXT)


def test_a_folder_that_lacks_weights_is_rejected(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["gpt2"], tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks weights of this model: transformer.h.1.mlp.c_fc.weight"):
        built(tmp_path, TEXT)


def test_code_that_comes_with_a_model_is_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["gpt2"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "theirs.py").write_text("raise SystemExit('run')\n")
    settings = json.loads((tmp_path / "config.json").read_text()) | {
        "model_type": "theirs",
        "auto_map": {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Net"},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match="has no configuration of a model"):
        built(tmp_path, TEXT)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "model.params.hub: needs either model.params.path or model.params.hub"),
        ({"path": "x", "hub": "a/b"}, "model.params.hub: needs either"),
        ({"path": "x", "weights": "random", "lora": {}}, "model.params.lora: would freeze random weights"),
        ({"path": "x", "lora": {"r": 0}}, "model.params.lora.r: 0 is not allowed"),
        ({"hub": "../x"}, "model.params.hub: '../x' is not allowed; allowed: an id such as"),
    ],
)
def test_settings_that_contradict_each_other_are_rejected(tmp_path: Path, params: dict[str, Any], message: str) -> None:
    (tmp_path / "x.yaml").write_text(json.dumps({"name": "x", "model": {"name": "transformers", "params": params}}))
    with pytest.raises(ConfigError, match=message):
        config.load([tmp_path / "x.yaml"])


def test_without_the_extra_the_way_to_install_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from workflow_lib.models import transformers as plugin

    monkeypatch.setattr(plugin, "find_spec", lambda package: None)
    settings = {"name": "x", "model": {"name": "transformers", "params": {"path": "x"}}}
    (tmp_path / "x.yaml").write_text(json.dumps(settings))
    with pytest.raises(ConfigError, match=r"needs the package transformers: pip install 'everstep\[transformers\]'"):
        config.load([tmp_path / "x.yaml"])


@pytest.mark.parametrize(("kind", "spec"), [("gpt2", TEXT), ("llama", TEXT), ("vit", IMAGES)])
def test_adapters_train_alone_and_are_merged_for_the_export(
    folders: dict[str, Path], kind: str, spec: ModelSpec
) -> None:
    network = built(folders[kind], spec, lora={"r": 2, "dropout": 0.1})
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert trained
    assert all("lora_" in name or name.startswith("classifier") for name in trained)
    assert models.read_from_files(network).isdisjoint(trained)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name in trained:
                weight.add_(0.1 * torch.randn_like(weight))
    inputs = torch.randint(20, (3, 12)) if spec is TEXT else torch.randn(3, 1, 8, 8)
    expected = network.eval()(inputs)
    merged = models.merged(network)
    torch.testing.assert_close(merged(inputs), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(network(inputs), expected)  # the trained model stays as it is
    # what a training saves is enough for the same model
    saved = {name: value for name, value in network.state_dict().items() if name in trained}
    again = built(folders[kind], spec, lora={"r": 2, "dropout": 0.1})
    models.load_weights(again, saved)
    assert torch.equal(again.eval()(inputs), expected)
    with pytest.raises(RuntimeError, match="Missing key"):
        models.load_weights(again, {name: saved[name] for name in sorted(saved)[1:]})


def test_adapters_start_beside_the_frozen_weights_that_they_were_trained_with(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()
    shutil.copytree(folders["gpt2"], tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    model = "{name: transformers, params: {path: PATH, lora: {r: 2}}, init: {from: SOURCE}}"
    (tmp_path / "text.txt").write_text("some words\n" * 99)
    for name, path, source in (("a", "first", "null"), ("b", "second", "a.yaml")):
        text = f"name: {name}\ndata: {{name: text, params: {{path: text.txt}}}}\nmodel: {model}\n"
        (tmp_path / f"{name}.yaml").write_text(text.replace("PATH", path).replace("SOURCE", source))
    assert main(["validate", "b.yaml"]) == 0, capsys.readouterr().err
    weights = load_file(tmp_path / "second/model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tmp_path / "second/model.safetensors")
    assert main(["validate", "b.yaml"]) == 2
    told = capsys.readouterr().err
    assert "beside the frozen weights in first, and those in second differ" in told
    # a job that finds no folder ends as for every wrong setting
    (run,) = plan.expand(config.load([tmp_path / "a.yaml"]))
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(ConfigError, match=r"^model.params.path: no such file: first \(looked for in"):
        user_code.digest(run.config)


def test_frozen_weights_of_the_folder_need_not_be_in_the_run_that_a_training_starts_from(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Snakefile").touch()
    model = f"{{name: transformers, params: {{path: {folders['vit']}}}, init: INIT}}"
    freeze = 'freeze: ["vit.embeddings*"]'
    for name, init in (("a", f"{{{freeze}}}"), ("b", "{from: a.yaml}"), ("c", f"{{from: a.yaml, {freeze}}}")):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nmodel: {model.replace('INIT', init)}\n")
    assert main(["validate", "b.yaml"]) == 2
    assert "does not fit the model: missing: vit.embeddings.cls_token" in capsys.readouterr().err
    assert main(["validate", "c.yaml"]) == 0, capsys.readouterr().err
    first, last = (plan.expand(config.load([tmp_path / f"{name}.yaml"]))[0].config for name in ("a", "c"))
    parts: dict[str, Any] = {"ranks": Ranks(), "peers": Peers(), "device": torch.device("cpu"), "environment": {}}
    state = State(first, IMAGES, **parts)
    with torch.no_grad():
        state.model.get_parameter("classifier.weight").fill_(2.0)
    save_file(state.inference_weights(), tmp_path / "model.safetensors")
    started = State(last, IMAGES, **parts, weights={"model.init.from": tmp_path / "model.safetensors"})
    trained = state.model.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in started.model.state_dict().items())


def test_an_adapter_for_no_layer_is_rejected(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match=r"model.params.lora.target_modules: .*query"):
        built(folders["gpt2"], TEXT, lora={"target_modules": ["query"]})


def cache(hub: Path, folder: Path, commit: str = "a" * 40) -> None:
    """Put a folder into the cache of the hub, as a download would."""
    place = hub / "models--ours--small"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)


def test_a_model_of_the_hub_is_found_in_the_cache_and_its_content_is_identity(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "x.yaml").write_text("name: x\nmodel: {name: transformers, params: {hub: ours/small}}\n")
    (run,) = plan.expand(config.load([tmp_path / "x.yaml"]))
    with pytest.raises(ConfigError, match=r"ours/small \(main\) is not in the local cache .*`hf download ours/small"):
        user_code.files_of(run.config)
    cache(tmp_path, folders["gpt2"])
    (name,) = user_code.files_of(run.config)
    assert name == f"hub at {'a' * 40}"
    assert models.build(run.config.model, TEXT)(torch.zeros(1, 4).long()).shape == (1, 4, 20)
    before = user_code.digest(run.config)
    (tmp_path / "models--ours--small/snapshots" / ("a" * 40) / "config.json").write_text("{}")
    assert user_code.digest(run.config) != before
