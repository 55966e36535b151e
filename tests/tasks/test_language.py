"""Metrics of predicted tokens, against scikit-learn; what a language model generates."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from sklearn import metrics

from workflow_lib.data import ModelSpec
from workflow_lib.metrics.bootstrap import Resampling
from workflow_lib.metrics.tokens import Sums, measure
from workflow_lib.tasks.language import GENERATED_TOKENS, LOGITS_AT_ONCE, generate, predict, rows_at_once


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


def sums_of(network: torch.nn.Module, tokens: torch.Tensor, size: int = 7) -> Sums:
    return predict(network, tokens.split(size), torch.device("cpu"))


def test_loss_and_accuracy_of_tokens_equal_those_of_scikit_learn() -> None:
    network, tokens = Bigrams(5), windows(30, 11, 5)
    result = measure(sums_of(network, tokens), Resampling(0, 0.95, 0))
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
    measured = measure(sums_of(Bigrams(5), windows(40, 8, 5)), Resampling(500, 0.9, 0))["metrics"]
    for end in ("low", "high"):
        assert measured["perplexity"][end] == pytest.approx(np.exp(measured["loss"][end]), rel=1e-3)
    assert measured["loss"]["low"] < measured["loss"]["value"] < measured["loss"]["high"]


def test_a_hopeless_perplexity_is_null_and_says_why() -> None:
    sums = Sums(loss=np.full(3, 8000.0), correct=np.zeros(3, dtype=np.int64), tokens=8)
    result = measure(sums, Resampling(10, 0.95, 0))
    assert result["metrics"]["perplexity"]["value"] is None
    assert result["metrics"]["loss"]["value"] == 1000
    json.dumps(result, allow_nan=False)


def test_the_logits_held_at_once_are_bounded() -> None:
    assert rows_at_once(ModelSpec((64,), 100), 256) == 256
    assert rows_at_once(ModelSpec((1024,), 50_000), 256) == 1
    assert rows_at_once(ModelSpec((512,), 256), 256) * 512 * 256 <= LOGITS_AT_ONCE


def test_what_is_generated_follows_from_the_seed() -> None:
    network, prompt = Bigrams(50), torch.tensor([3, 4])
    first, again, other = (generate(network, prompt, 8, seed, torch.device("cpu")) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == GENERATED_TOKENS
