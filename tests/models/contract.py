"""The laws of a model. A new one, also one outside this repository, inherits them:

from tests.models.contract import ModelContract

class TestMine(ModelContract):
    name = "mypackage.mine"
    shapes = [(1, 8, 8), (3, 28, 28)]

They are checked for each task that the model is for: `tasks = ("regression",)`, `("segmentation",)`, or `("language",)`
and `("text_classification",)` with shapes of one number, the length of a text. A model of tables says what its features
are: `categories = (0, 3, 0)`.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from workflow_lib import export, plugins, tasks
from workflow_lib.config.run import Training
from workflow_lib.data import ModelSpec
from workflow_lib.errors import ConfigError
from workflow_lib.plugins import Section

TOKENS = 40  # of texts with a class


class Alone(nn.Module):
    """A network without the preprocessing that an export puts before it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *given: Tensor) -> Tensor:
        outputs: Tensor = self.network(*given)
        return outputs


class ModelContract:
    """Every test here must hold for the model `name` with the settings `params`, for each of the `shapes` and `tasks`.

    The first task is checked with all shapes, the others with the first shape.
    """

    name: ClassVar[str]
    params: ClassVar[dict[str, Any]] = {}
    shapes: ClassVar[list[tuple[int, ...]]] = [(1, 8, 8), (1, 28, 28), (3, 28, 28)]
    tasks: ClassVar[tuple[Any, ...]] = ("classification", "regression")
    categories: ClassVar[tuple[int, ...]] = ()
    outputs: ClassVar[int] = 10

    @pytest.fixture
    def specs(self) -> list[ModelSpec]:
        pairs = [(shape, self.tasks[0]) for shape in self.shapes]
        pairs += [(self.shapes[0], task) for task in self.tasks[1:]]
        return [ModelSpec(shape, self.outputs, task, self.categories, self.vocabulary(task)) for shape, task in pairs]

    def vocabulary(self, task: str) -> int:
        """Return the number of tokens of texts for the task; 0 for other inputs."""
        return {"language": self.outputs, "text_classification": TOKENS}.get(task, 0)

    def built(self, spec: ModelSpec, seed: int = 0) -> nn.Module:
        plugin = plugins.load("models", self.name)
        torch.manual_seed(seed)
        return plugin.build(plugin.Params.model_validate(self.params), spec)

    def batch(self, spec: ModelSpec, samples: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Random samples; a text counts up from a random token.

        The class of a pixel is the quarter of its value. Random classes of so many pixels could not be learnt by heart,
        and fewer than four classes by their frequencies alone.
        """
        generator = torch.Generator().manual_seed(seed)
        if spec.task == "language":
            first = torch.randint(spec.outputs, (samples, 1), generator=generator)
            tokens = (first + torch.arange(spec.input_shape[0] + 1)) % spec.outputs
            return tokens[:, :-1], tokens[:, 1:]
        if spec.task == "text_classification":
            return self.texts(spec, samples, generator)
        inputs = torch.randn((samples, *spec.input_shape), generator=generator)
        if spec.task == "segmentation":
            quarters = (inputs[:, 0, ..., None] > torch.tensor([-0.6745, 0.0, 0.6745])).sum(-1)
            return inputs, quarters.clamp(max=spec.outputs - 1)
        if spec.task == "multilabel":
            return inputs, torch.randint(2, (samples, spec.outputs), generator=generator)
        for feature, count in enumerate(spec.categories):
            if count:
                inputs[:, feature] = torch.randint(count, (samples,), generator=generator)
        if spec.task == "regression":
            return inputs, torch.randn((samples, spec.outputs), generator=generator)
        return inputs, torch.randint(spec.outputs, (samples,), generator=generator)

    def texts(self, spec: ModelSpec, samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random tokens of a third of the vocabulary that tells the class; the end of each text is filled with 0."""
        targets = torch.randint(spec.outputs, (samples,), generator=generator)
        tokens = 1 + targets[:, None] * 3 + torch.randint(3, (samples, *spec.input_shape), generator=generator)
        sizes = torch.randint(1, spec.input_shape[0] + 1, (samples, 1), generator=generator)
        return torch.where(torch.arange(spec.input_shape[0]) < sizes, tokens, 0), targets

    def loss(self, spec: ModelSpec, network: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        objective = tasks.load(spec.task).objective(Training(), torch.device("cpu"), (1,) * spec.outputs, ())
        return objective.loss(network(inputs), targets)

    def trained(self, spec: ModelSpec, steps: int) -> tuple[nn.Module, list[float]]:
        """The model after some steps on one batch, and the loss at each."""
        network = self.built(spec).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        inputs, targets = self.batch(spec, 32)
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = self.loss(spec, network, inputs, targets)
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

    def test_what_it_is_not_for_is_refused(self) -> None:
        specs = {
            "images": ModelSpec((1, 8, 8), 10),
            "tables": ModelSpec((5,), 10, categories=(0, 3, 0, 0, 0)),
            "texts": ModelSpec((16,), 10, "language"),
        }
        for inputs in specs.keys() - set(plugins.accepted_inputs(self.name)):
            with pytest.raises(ConfigError, match="model.name"):
                self.built(specs[inputs])

    def test_any_batch_gives_finite_outputs(self, specs: list[ModelSpec]) -> None:
        for spec in specs:
            for mode, samples in ((True, 2), (True, 7), (False, 1), (False, 2), (False, 7)):
                inputs, _ = self.batch(spec, samples)
                outputs = self.built(spec).train(mode)(inputs)
                of_a_sample = {
                    "language": (*spec.input_shape, self.outputs),
                    "segmentation": (self.outputs, *spec.input_shape[1:]),
                }.get(spec.task, (self.outputs,))
                assert (outputs.shape, outputs.dtype) == ((samples, *of_a_sample), torch.float32)
                assert outputs.isfinite().all()

    def test_equal_seeds_give_equal_weights(self, specs: list[ModelSpec]) -> None:
        for spec in specs:
            one, two, other = (self.built(spec, seed).state_dict() for seed in (1, 1, 2))
            assert all(torch.equal(one[key], two[key]) for key in one)
            assert any(not torch.equal(one[key], other[key]) for key in one)

    def test_every_parameter_learns(self, specs: list[ModelSpec]) -> None:
        for spec in specs:
            network = self.built(spec).train()
            self.loss(spec, network, *self.batch(spec, 32)).backward()
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
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

    def test_the_exported_model_gives_the_same_numbers_for_any_batch(self, specs: list[ModelSpec]) -> None:
        network, _ = self.trained(specs[0], steps=3)
        inputs, _ = self.batch(specs[0], 7)
        name = "input" if inputs.is_floating_point() else "tokens"
        content = export.convert(Alone(network), {name: inputs[:2]}).SerializeToString()
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        for samples in (1, 2, 7):
            with torch.inference_mode():
                expected = network.eval()(inputs[:samples]).numpy()
            given = session.run(None, {session.get_inputs()[0].name: inputs[:samples].numpy()})[0]
            np.testing.assert_allclose(np.asarray(given), expected, rtol=1e-3, atol=1e-4)

    def test_a_token_is_predicted_from_those_before_it_alone(self, specs: list[ModelSpec]) -> None:
        for spec in [spec for spec in specs if spec.task == "language"]:
            network, (inputs, _), middle = self.built(spec).eval(), self.batch(spec, 3), spec.input_shape[0] // 2
            changed = torch.cat((inputs[:, :middle], (inputs[:, middle:] + 1) % spec.outputs), 1)
            before, after = network(inputs), network(changed)
            torch.testing.assert_close(before[:, :middle], after[:, :middle])
            torch.testing.assert_close(before[:, :middle], network(inputs[:, :middle]))
            assert not torch.equal(before[:, middle:], after[:, middle:])
