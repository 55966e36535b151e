"""The laws of a model. A new one, also one outside this repository, inherits them:

from tests.models.contract import ModelContract

class TestMine(ModelContract):
    name = "mypackage.mine"
    shapes = [(1, 8, 8), (3, 28, 28)]
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workflow_lib import plugins
from workflow_lib.plugins import Section
from workflow_lib.shards import ModelSpec


class ModelContract:
    """Every test here must hold for the model `name` with the settings `params`, for inputs of each of the `shapes`."""

    name: ClassVar[str]
    params: ClassVar[dict[str, Any]] = {}
    shapes: ClassVar[list[tuple[int, ...]]] = [(1, 8, 8), (1, 28, 28), (3, 28, 28)]
    classes: ClassVar[int] = 10

    @pytest.fixture
    def specs(self) -> list[ModelSpec]:
        return [ModelSpec(shape, self.classes) for shape in self.shapes]

    def built(self, spec: ModelSpec, seed: int = 0) -> nn.Module:
        plugin = plugins.load("models", self.name)
        torch.manual_seed(seed)
        return plugin.build(plugin.Params.model_validate(self.params), spec)

    def batch(self, spec: ModelSpec, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn((samples, *spec.input_shape), generator=generator)
        return inputs, torch.randint(spec.outputs, (samples,), generator=generator)

    def trained(self, spec: ModelSpec, steps: int) -> tuple[nn.Module, list[float]]:
        """The model after some steps on one batch, and the loss at each."""
        network = self.built(spec).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        inputs, targets = self.batch(spec, 32)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(network(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return network, losses

    @pytest.fixture
    def deterministic(self) -> Iterator[None]:
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(False)

    def test_unknown_settings_are_refused(self) -> None:
        with pytest.raises(ValidationError, match="surely_unknown"):
            plugins.load("models", self.name).Params.model_validate(self.params | {"surely_unknown": 1})

    def test_every_setting_is_described(self) -> None:
        settings: type[Section] = plugins.load("models", self.name).Params
        assert [name for name, field in settings.model_fields.items() if not field.description] == []

    def test_the_module_imports_nothing_heavy(self) -> None:
        module = plugins.load("models", self.name).__name__
        code = f"import sys, {module}; print(*{{'torch', 'numpy', 'pandas'}} & set(sys.modules))"
        loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert loaded.stdout.split() == []

    def test_any_batch_gives_finite_logits_for_each_class(self, specs: list[ModelSpec]) -> None:
        for spec in specs:
            for mode, samples in ((True, 2), (True, 7), (False, 1), (False, 2), (False, 7)):
                logits = self.built(spec).train(mode)(self.batch(spec, samples)[0])
                assert (logits.shape, logits.dtype) == ((samples, self.classes), torch.float32)
                assert logits.isfinite().all()

    def test_equal_seeds_give_equal_weights(self, specs: list[ModelSpec]) -> None:
        for spec in specs:
            one, two, other = (self.built(spec, seed).state_dict() for seed in (1, 1, 2))
            assert all(torch.equal(one[key], two[key]) for key in one)
            assert any(not torch.equal(one[key], other[key]) for key in one)

    def test_every_parameter_learns(self, specs: list[ModelSpec]) -> None:
        for spec in specs:
            network = self.built(spec).train()
            inputs, targets = self.batch(spec, 32)
            nn.functional.cross_entropy(network(inputs), targets).backward()
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None and parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().max() > 0, name

    def test_a_batch_can_be_learnt(self, specs: list[ModelSpec]) -> None:
        _, losses = self.trained(specs[0], steps=40)
        assert losses[-1] < 0.5 * losses[0]

    @pytest.mark.usefixtures("deterministic")
    def test_equal_trainings_end_in_equal_bits(self, specs: list[ModelSpec]) -> None:
        (one, losses), (two, again) = (self.trained(specs[0], steps=5) for _ in range(2))
        assert losses == again
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))

    def test_a_prediction_does_not_depend_on_its_batch(self, specs: list[ModelSpec]) -> None:
        for spec in specs:
            network = self.built(spec).eval()
            inputs, _ = self.batch(spec, 7)
            alone = torch.cat([network(part) for part in inputs.split(1)])
            torch.testing.assert_close(network(inputs), alone)
            assert torch.equal(network(inputs), network(inputs))

    def test_the_weights_in_a_file_are_the_model(self, specs: list[ModelSpec], tmp_path: Path) -> None:
        network, _ = self.trained(specs[0], steps=3)
        save_file(network.state_dict(), tmp_path / "model.safetensors")
        other = self.built(specs[0], seed=1)
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        inputs, _ = self.batch(specs[0], 7)
        assert torch.equal(network.eval()(inputs), other.eval()(inputs))
