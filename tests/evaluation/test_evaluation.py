from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from tests.support.trained import Trained, train
from workflow_lib import data, evaluation
from workflow_lib.errors import EverstepError, UserError
from workflow_lib.evaluation import classification, language, regression
from workflow_lib.evaluation.bootstrap import Resampling
from workflow_lib.files import read_json
from workflow_lib.results.provenance import file_digest

CLASSES = 4


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(tmp_path_factory.mktemp("project"))


def guesses(samples: int, classes: int, seed: int = 0, decimals: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a fair model, and the targets; few decimals make ties."""
    generator = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), generator.integers(0, classes, samples - classes)])
    logits = generator.normal(size=(samples, classes)) + 1.5 * np.eye(classes)[targets]
    return logits.round(decimals).astype(np.float32), targets


def expected(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The same metrics by scikit-learn."""
    probabilities = np.exp(classification.log_softmax(logits))
    predicted = logits.argmax(axis=1)
    scores = probabilities if logits.shape[1] > 2 else probabilities[:, 1]
    return {
        "accuracy": metrics.accuracy_score(targets, predicted),
        "macro_f1": metrics.f1_score(targets, predicted, average="macro"),
        "roc_auc": metrics.roc_auc_score(targets, scores, multi_class="ovr"),
        "log_loss": metrics.log_loss(targets, probabilities),
    }


def measure(logits: np.ndarray, targets: np.ndarray, resamples: int = 0, seed: int = 0) -> dict:
    names = [f"class {label}" for label in range(logits.shape[1])]
    return classification.measure(logits, targets, names, Resampling(resamples, 0.95, seed))


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("decimals", [8, 0])
def test_metrics_equal_those_of_scikit_learn(classes: int, decimals: int) -> None:
    logits, targets = guesses(300, classes, decimals=decimals)
    result = measure(logits, targets)
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert values == pytest.approx(expected(logits, targets), abs=1e-12)
    predicted = logits.argmax(axis=1)
    assert result["confusion"] == metrics.confusion_matrix(targets, predicted).tolist()
    table = metrics.precision_recall_fscore_support(targets, predicted)
    for name, column in zip(("precision", "recall", "f1", "support"), table, strict=True):
        assert [row[name] for row in result["per_class"]] == pytest.approx(column.tolist())


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("decimals", [8, 0])
def test_a_resample_is_measured_as_if_its_samples_were_written_out(classes: int, decimals: int) -> None:
    logits, targets = guesses(60, classes, decimals=decimals)
    weights = np.random.default_rng(1).integers(0, 4, (60, 5)).astype(np.int32)
    weights[:classes] += 1
    for column in weights.T:  # as many samples as there are, as in a bootstrap
        column[-1] += max(0, 60 - column.sum())
        while column.sum() > 60:
            column[column.argmax()] -= 1
    scores = classification.Sample(logits, targets).scores(weights)
    for number, column in enumerate(weights.T):
        written_out = expected(logits.repeat(column, axis=0), targets.repeat(column))
        assert {name: values[number] for name, values in scores.items()} == pytest.approx(written_out, abs=1e-12)


def test_intervals_are_those_of_scipys_percentile_bootstrap() -> None:
    logits, targets = guesses(200, CLASSES)
    right = (logits.argmax(axis=1) == targets).astype(float)
    generator = np.random.default_rng(3)
    theirs = stats.bootstrap(
        (right,), np.mean, method="percentile", n_resamples=4000, rng=generator
    ).confidence_interval
    ours = measure(logits, targets, resamples=4000)["metrics"]["accuracy"]
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize(("right", "samples"), [(True, 36), (False, 36), (True, 3)])
def test_a_proportion_of_none_or_all_has_the_exact_interval(right: bool, samples: int) -> None:
    """Drawing again would give an interval of no width, however few samples there are."""
    from scipy.stats import binomtest

    targets = np.arange(samples) % 2
    logits = np.eye(2, dtype=np.float32)[targets if right else 1 - targets] * 9
    measured = classification.measure(logits, targets, ["a", "b"], Resampling(50, 0.95, 0))["metrics"]["accuracy"]
    expected = binomtest(samples * right, samples).proportion_ci(0.95, method="exact")
    assert (measured["low"], measured["high"]) == pytest.approx((expected.low, expected.high))
    none = classification.measure(logits, targets, ["a", "b"], Resampling(0, 0.95, 0))["metrics"]["accuracy"]
    assert none["low"] is None


def test_equal_seeds_give_equal_intervals_and_other_seeds_others() -> None:
    logits, targets = guesses(100, CLASSES)
    one, again, other = (measure(logits, targets, 300, seed)["metrics"] for seed in (0, 0, 1))
    assert one == again
    assert one["log_loss"]["low"] != other["log_loss"]["low"]


def test_an_undefined_auc_is_null_and_says_why() -> None:
    logits, targets = guesses(50, CLASSES)
    targets[:] = 2
    result = measure(logits, targets, resamples=50)
    assert result["metrics"]["roc_auc"]["value"] is None
    assert "class 1" in result["metrics"]["roc_auc"]["reason"]
    assert result["per_class"][1]["roc_auc"] is None
    assert result["per_class"][1]["recall"] is None
    json.dumps(result, allow_nan=False)


def test_metrics_of_a_split_that_lacks_a_class_say_for_which_classes_they_are() -> None:
    logits, targets = guesses(60, CLASSES)
    targets[targets == 2] = 0
    logits[:, 2] = -10
    result = measure(logits, targets, resamples=50)
    others = [name for number, name in enumerate(result["classes"]) if number != 2]
    assert result["absent_classes"] == [result["classes"][2]]
    assert result["metrics"]["roc_auc"]["classes"] == result["metrics"]["macro_f1"]["classes"] == others
    areas = [metrics.roc_auc_score(targets == label, classification.log_softmax(logits)[:, label])
             for label in range(CLASSES) if label != 2]  # fmt: skip
    assert result["metrics"]["roc_auc"]["value"] == pytest.approx(np.mean(areas), abs=1e-12)
    assert result["per_class"][2]["support"] == 0
    assert result["per_class"][2]["recall"] is None
    assert "classes" not in measure(*guesses(60, CLASSES))["metrics"]["roc_auc"]
    json.dumps(result, allow_nan=False)


def test_a_class_that_occurs_nowhere_is_left_out_of_the_mean_f1() -> None:
    logits, targets = guesses(50, CLASSES)
    targets[targets == 2] = 0
    logits[:, 2] = -10
    by_scikit_learn = metrics.f1_score(targets, logits.argmax(axis=1), average="macro")
    assert measure(logits, targets)["metrics"]["macro_f1"]["value"] == pytest.approx(by_scikit_learn, abs=1e-12)


def test_resamples_without_a_class_are_left_out_and_counted() -> None:
    logits, targets = guesses(40, CLASSES)
    targets[targets == 3] = 0
    targets[7] = 3
    auc = measure(logits, targets, resamples=400)["metrics"]["roc_auc"]
    assert 0.25 < auc["undefined_resamples"] / 400 < 0.5  # (1 - 1/40) ** 40 = 0.36
    assert auc["low"] <= auc["value"] <= auc["high"]


def test_certain_and_wrong_is_a_large_loss_and_not_infinite() -> None:
    logits = np.array([[300.0, -300.0], [-300.0, 300.0]], dtype=np.float32)
    assert measure(logits, np.array([1, 0]))["metrics"]["log_loss"]["value"] == 600.0


def test_an_evaluation_follows_from_its_predictions(project: Trained, tmp_path: Path) -> None:
    run = project.runs[0]
    folder = project.results / "runs" / run
    output = tmp_path / "evaluation.json"
    evaluation.evaluate(
        project.experiment,
        run=run,
        data=project.data,
        work=project.work,
        model=folder / "model.safetensors",
        output=output,
    )
    result = read_json(output)
    trained = read_json(folder / "train.json")
    assert (result["run"], result["digest"], result["data"]) == (run, trained["digest"], trained["data"])
    assert result["model"] == file_digest(folder / "model.safetensors")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    targets = np.array([int(row["target"]) for row in rows])
    probabilities = np.array([[float(row[f"p({name})"]) for name in result["classes"]] for row in rows])
    assert [int(row["predicted"]) for row in rows] == probabilities.argmax(axis=1).tolist()
    assert result["metrics"]["accuracy"]["value"] == np.mean(probabilities.argmax(axis=1) == targets) > 0.5
    loss = -np.log(probabilities[np.arange(len(targets)), targets]).mean()
    assert result["metrics"]["log_loss"]["value"] == pytest.approx(loss, abs=1e-12)


def test_the_batch_size_changes_no_prediction(project: Trained) -> None:
    run = project.runs[0]
    model = project.results / "runs" / run / "model.safetensors"
    subject = evaluation.load_subject(run, project.data, project.work, model)
    split, where = data.load_split(subject.manifest, "test", project.work), torch.device("cpu")
    one, seven, all_at_once = (evaluation.predict(subject.network, split, size, where) for size in (1, 7, 256))
    np.testing.assert_allclose(one, all_at_once, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(one.argmax(axis=1), all_at_once.argmax(axis=1))
    np.testing.assert_array_equal(seven.argmax(axis=1), all_at_once.argmax(axis=1))


def test_probabilities_read_back_as_the_same_numbers() -> None:
    logits, targets = guesses(20, CLASSES)
    text = classification.predictions_csv(logits, targets, ["a", "b", 'c, "quoted"', "ü"])
    header, *rows = csv.reader(text.splitlines())
    assert header[-2:] == ['p(c, "quoted")', "p(ü)"]
    read = np.array([[float(cell) for cell in row[3:]] for row in rows])
    np.testing.assert_array_equal(read, np.exp(classification.log_softmax(logits)))


def test_weights_of_another_run_are_refused(project: Trained) -> None:
    model = project.results / "runs" / project.runs[0] / "model.safetensors"
    with pytest.raises(UserError, match="was trained as run"):
        evaluation.load_subject(project.runs[1], project.data, project.work, model)


def test_a_diverged_model_is_refused() -> None:
    network = torch.nn.Linear(3, 2)
    inputs = torch.zeros(5, 3)
    inputs[3, 0] = torch.inf
    with pytest.raises(EverstepError, match=r"1 of 5 test samples \(first: sample 3\)"):
        evaluation.predict(network, data.Split(inputs, torch.zeros(5)), 2, torch.device("cpu"))


# Regression


def numbers(samples: int, targets: int, *, far: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of a fair model, and the targets."""
    generator = np.random.default_rng(seed)
    true = generator.normal(size=(samples, targets)) * np.arange(1, targets + 1) + far
    return true + 0.3 * generator.normal(size=true.shape), true


def errors(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """The same metrics by scikit-learn."""
    return {
        "mae": metrics.mean_absolute_error(true, predicted),
        "rmse": metrics.root_mean_squared_error(true, predicted),
        "r2": metrics.r2_score(true, predicted),
    }


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("far", [0.0, 1e5])
def test_errors_equal_those_of_scikit_learn(targets: int, far: float) -> None:
    predicted, true = numbers(200, targets, far=far)
    result = regression.measure(predicted, true, Resampling(0, 0.95, 0))
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    assert values == pytest.approx(errors(predicted, true), abs=1e-9)
    for number, one in enumerate(result["per_target"]):
        assert one == pytest.approx(errors(predicted[:, [number]], true[:, [number]]), abs=1e-9)


def test_a_resample_of_numbers_is_measured_as_if_its_samples_were_written_out() -> None:
    predicted, true = numbers(50, 2, far=3.0)
    weights = np.random.default_rng(1).multinomial(50, np.full(50, 1 / 50), size=4).T.astype(np.int32)
    scores = regression.Sample(predicted, true).scores(weights)
    for number, column in enumerate(weights.T):
        written_out = errors(predicted.repeat(column, axis=0), true.repeat(column, axis=0))
        assert {name: values[number] for name, values in scores.items()} == pytest.approx(written_out, abs=1e-12)


def test_the_interval_of_an_error_is_scipys_percentile_bootstrap() -> None:
    predicted, true = numbers(200, 1)
    theirs = stats.bootstrap(
        (np.abs(predicted - true)[:, 0],), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(3)
    ).confidence_interval
    ours = regression.measure(predicted, true, Resampling(4000, 0.95, 0))["metrics"]["mae"]
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_r2_of_targets_that_never_vary_is_null_and_says_why() -> None:
    predicted, true = numbers(30, 1)
    result = regression.measure(predicted, np.full_like(true, 0.1), Resampling(20, 0.95, 0))
    assert result["metrics"]["r2"]["value"] is None
    assert "never varies" in result["metrics"]["r2"]["reason"]
    assert result["metrics"]["mae"]["low"] is not None
    json.dumps(result, allow_nan=False)


def test_predicted_numbers_read_back_as_they_were() -> None:
    predicted, true = numbers(20, 2)
    header, *rows = csv.reader(regression.predictions_csv(predicted, true).splitlines())
    assert header == ["sample", "target_0", "predicted_0", "target_1", "predicted_1"]
    read = np.array([[float(cell) for cell in row[1:]] for row in rows])
    np.testing.assert_array_equal(read[:, ::2], true)
    np.testing.assert_array_equal(read[:, 1::2], predicted)


# Language


class Bigrams(torch.nn.Module):
    """Foresees the next token by a table of the last one, and looks at nothing else."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        super().__init__()
        table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(seed))
        self.table = torch.nn.Parameter(2 * table)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens]


def windows(samples: int, context: int, vocabulary: int) -> torch.Tensor:
    return torch.randint(vocabulary, (samples, context + 1), generator=torch.Generator().manual_seed(1))


def sums_of(network: torch.nn.Module, tokens: torch.Tensor, size: int = 7) -> language.Sums:
    return language.predict(network, tokens.split(size), torch.device("cpu"))


def test_loss_and_accuracy_of_tokens_equal_those_of_scikit_learn() -> None:
    network, tokens = Bigrams(5), windows(30, 11, 5)
    result = language.measure(sums_of(network, tokens), Resampling(0, 0.95, 0))
    seen, true = tokens[:, :-1].flatten(), tokens[:, 1:].flatten().numpy()
    chances = torch.softmax(network.table.detach().double(), dim=1)[seen].numpy()
    loss = metrics.log_loss(true, chances, labels=range(5))
    values = {name: metric["value"] for name, metric in result["metrics"].items()}
    accuracy = metrics.accuracy_score(true, chances.argmax(axis=1))
    assert values == pytest.approx({"loss": loss, "perplexity": np.exp(loss), "accuracy": accuracy}, rel=1e-6)
    assert result["tokens"] == len(true)


def test_a_batch_of_windows_gives_the_sums_of_each_alone() -> None:
    network, tokens = Bigrams(5), windows(10, 4, 5)
    together, alone = sums_of(network, tokens, 10), sums_of(network, tokens, 1)
    np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-6)
    np.testing.assert_array_equal(together.correct, alone.correct)


def test_the_interval_of_perplexity_is_that_of_the_loss() -> None:
    measured = language.measure(sums_of(Bigrams(5), windows(40, 8, 5)), Resampling(500, 0.9, 0))["metrics"]
    for end in ("low", "high"):
        assert measured["perplexity"][end] == pytest.approx(np.exp(measured["loss"][end]), rel=1e-3)
    assert measured["loss"]["low"] < measured["loss"]["value"] < measured["loss"]["high"]


def test_a_hopeless_perplexity_is_null_and_says_why() -> None:
    sums = language.Sums(loss=np.full(3, 8000.0), correct=np.zeros(3, dtype=np.int64), tokens=8)
    result = language.measure(sums, Resampling(10, 0.95, 0))
    assert result["metrics"]["perplexity"]["value"] is None
    assert result["metrics"]["loss"]["value"] == 1000
    json.dumps(result, allow_nan=False)


def test_the_logits_held_at_once_are_bounded() -> None:
    assert language.rows_at_once(256, context=64, vocabulary=100) == 256
    assert language.rows_at_once(256, context=1024, vocabulary=50_000) == 1
    assert language.rows_at_once(256, context=512, vocabulary=256) * 512 * 256 <= language.LOGITS_AT_ONCE


def test_what_is_generated_follows_from_the_seed() -> None:
    network, prompt = Bigrams(50), torch.tensor([3, 4])
    one, again, other = (language.generate(network, prompt, 8, seed, torch.device("cpu")) for seed in (0, 0, 1))
    assert one == again != other
    assert len(one) == language.GENERATED_TOKENS
