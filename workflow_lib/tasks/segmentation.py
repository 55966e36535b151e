"""Segmentation: a class for each pixel. Images [B, C, H, W] give logits [B, classes, H, W]; the loss is cross-entropy.

The loss of an image is the mean over its pixels that are not ignored. Metrics count the pixels of all images together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from workflow_lib.errors import ConfigError
from workflow_lib.tasks import AnySplit, Chapter, Columns, Measured, Objective, Onnx, Pairs, Task, classification
from workflow_lib.tasks.facts import POSITIVE, SHARE

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, device, nn

    from workflow_lib.config.experiment import Evaluate
    from workflow_lib.config.run import Training
    from workflow_lib.data import Manifest, ModelSpec
    from workflow_lib.metrics.masks import Counts
    from workflow_lib.metrics.outcomes import Outcomes

IGNORED = 255  # as in workflow_lib.data, which imports numpy
LOGITS_AT_ONCE = 1 << 25  # 128 MiB of float32
EXAMPLES = 6


def with_numbers(images: Tensor, masks: Tensor) -> Pairs:
    """Return the images, and their masks as int64."""
    return images, masks.long()


@final
class PixelCrossEntropy(Objective):
    """Cross-entropy of each pixel, with label smoothing, focal loss or class weights if they are set."""

    def __init__(
        self, classes: int, *, smoothing: float = 0.0, focal_gamma: float = 0.0, weights: Tensor | None = None
    ) -> None:
        self._pixel = classification.CrossEntropy(smoothing=smoothing, focal_gamma=focal_gamma, weights=weights)
        self._classes = classes
        counted = [f"{what} {number}" for what in ("hits", "predicted", "true") for number in range(classes)]
        self.sums = ("loss", "samples", *counted)

    def parts(self, inputs: Tensor, targets: Tensor) -> Pairs:
        return with_numbers(inputs, targets)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return _image_means(self._pixel, outputs, targets)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.losses(outputs, targets).mean()

    def measure(self, outputs: Tensor, targets: Tensor) -> Tensor:
        import torch

        loss = _image_means(classification.CrossEntropy(), outputs, targets).double().sum()
        samples = loss.new_full((), len(targets))
        counts = torch.stack(counted(outputs, targets)).sum(dim=1).double().flatten()
        return torch.cat((torch.stack((loss, samples)), counts))

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        ratios = []
        for number in range(self._classes):
            hits, predicted, true = (sums[f"{what} {number}"] for what in ("hits", "predicted", "true"))
            if predicted + true:
                ratios.append(hits / (predicted + true - hits))
        return {"val_loss": sums["loss"] / sums["samples"], "val_mean_iou": sum(ratios) / max(1, len(ratios))}


def _image_means(pixel: classification.CrossEntropy, outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss over the pixels of each image that are not ignored [B]; 0 if all are.

    Each pixel is a sample of the loss, because kernels for images are not deterministic on GPUs.
    """
    is_counted = targets != IGNORED
    logits, numbers = outputs.movedim(1, -1).flatten(0, -2), targets.where(is_counted, 0).flatten()
    each = pixel.losses(logits, numbers).view(targets.shape) * is_counted
    return each.flatten(1).sum(1) / is_counted.flatten(1).sum(1).clamp_min(1)


def counted(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the hits, the predicted and the true pixels of each image and class, int64 [B, classes]."""
    import torch

    classes = torch.arange(outputs.shape[1], device=outputs.device)[:, None, None]
    is_counted = (targets != IGNORED)[:, None]
    predicted = (outputs.argmax(1)[:, None] == classes) & is_counted
    true = targets[:, None] == classes
    return (predicted & true).sum((2, 3)), predicted.sum((2, 3)), true.sum((2, 3))


def objective(
    training: Training, where: device, counts: Sequence[int], target_std: Sequence[float]
) -> PixelCrossEntropy:
    """Return the loss with the label smoothing, focal gamma and class weights of the settings; pixels are counted.

    Raises ConfigError for balanced weights if train has no pixel of a class.
    """
    import torch

    if training.class_weights == "balanced" and 0 in counts:
        raise ConfigError(
            f"training.class_weights: train has no pixel of class number {list(counts).index(0)}, so balanced weights "
            "cannot be computed; list the weights, or remove the class"
        )
    weights = classification.class_weights(training.class_weights, counts)
    return PixelCrossEntropy(
        len(counts),
        smoothing=training.label_smoothing,
        focal_gamma=training.focal_gamma,
        weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=where),
    )


def probe(spec: ModelSpec) -> tuple[Tensor, tuple[int, ...]]:
    """Return two images of zeros, and the shape of the model's outputs for them: [2, classes, height, width]."""
    import torch

    return torch.zeros((2, *spec.input_shape)), (2, spec.outputs, *spec.input_shape[1:])


def rows_at_once(spec: ModelSpec, batch_size: int) -> int:
    """Return the largest batch, up to this size, whose logits fit LOGITS_AT_ONCE."""
    height, width = spec.input_shape[1:]
    return max(1, min(batch_size, LOGITS_AT_ONCE // (height * width * spec.outputs)))


def evaluate(network: nn.Module, manifest: Manifest, split: AnySplit, settings: Evaluate, where: device) -> Measured:
    """Return mean IoU, Dice, pixel accuracy and loss, those of each image, and some images with both masks."""
    from workflow_lib.metrics import masks
    from workflow_lib.metrics.bootstrap import Resampling

    counts = predict(network, split, rows_at_once(manifest.spec, settings.batch_size), where)
    measured = masks.measure(counts, manifest.classes, Resampling.of(settings))
    shown = examples(network, manifest, split, counts, where)
    return measured | {"examples": shown}, masks.predictions_csv(counts)


def predict(network: nn.Module, split: AnySplit, size: int, where: device) -> Counts:
    """Return the counts of each image; logits of a batch are reduced before the next, since they are large."""
    import torch

    from workflow_lib.metrics.masks import Counts
    from workflow_lib.metrics.outputs import check_finite, slices
    from workflow_lib.runtime.threads import return_freed_memory

    network, parts, losses = network.to(where).eval(), [], []
    with torch.inference_mode(), closing(split.stream(slices(len(split), size))) as batches:
        for images, masks in batches:
            logits, targets = network(images.to(where)).float(), masks.to(where).long()
            losses.append(_image_means(classification.CrossEntropy(), logits, targets).double().cpu())
            parts.append(torch.stack(counted(logits, targets), 1).cpu())
            del images, masks, logits, targets
            return_freed_memory()
    loss, (hits, predicted, true) = torch.cat(losses).numpy(), torch.cat(parts).unbind(1)
    check_finite(loss[:, None])
    return Counts(hits.numpy(), predicted.numpy(), true.numpy(), loss)


def examples(
    network: nn.Module, manifest: Manifest, split: AnySplit, counts: Counts, where: device
) -> list[dict[str, Any]]:
    """Return test images with their mask and the prediction as PNG: from the worst mean IoU to the best, spaced evenly.

    The medians of EXAMPLES equal parts are shown, so that they are typical.
    """
    import numpy as np
    import torch

    from workflow_lib.metrics import pictures
    from workflow_lib.metrics.masks import image_scores

    scores = image_scores(counts)["mean_iou"]
    order = np.argsort(scores, kind="stable")[: int((~np.isnan(scores)).sum())]
    places = dict.fromkeys(len(order) * (2 * number + 1) // (2 * EXAMPLES) for number in range(EXAMPLES))
    shown = []
    for sample in order[list(places)].tolist() if len(order) else ():
        images, masks = split.batch(slice(sample, sample + 1))
        with torch.inference_mode():
            predicted = network(images.to(where)).float().argmax(1)[0].cpu().numpy()
        shown.append(
            {
                "sample": sample,
                "mean_iou": float(scores[sample]),
                "image": pictures.image(images[0].cpu().numpy(), manifest),
                "mask": pictures.mask(masks[0].cpu().numpy()),
                "predicted": pictures.mask(predicted.astype(np.uint8)),
            }
        )
    return shown


def correct_share(outputs: np.ndarray, targets: np.ndarray, manifest: Manifest) -> float:
    """Return the sum over images of the share of their pixels, but the ignored ones, that were predicted correctly."""
    import numpy as np

    is_counted = targets != IGNORED
    right = ((outputs.argmax(axis=1) == targets) & is_counted).sum(axis=(1, 2))
    return float((right / np.maximum(1, is_counted.sum(axis=(1, 2)))).sum())


def probabilities(logits: Tensor) -> Tensor:
    """Return the probability of each class at each pixel."""
    return logits.softmax(dim=1)


def predicted(logits: np.ndarray, targets: np.ndarray, manifest: Manifest) -> Columns:
    """Return the share of each class among the pixels of an image."""
    numbers = numbers_of(logits)
    return {f"share({name})": (numbers == number).mean(axis=(1, 2)) for number, name in enumerate(manifest.classes)}


def numbers_of(logits: np.ndarray) -> np.ndarray:
    """Return the number of the class with the largest logit of each pixel, uint8 [n, height, width]."""
    return logits.argmax(axis=1).astype("uint8")


def chapter_values(evaluation: dict[str, Any], predictions: Path) -> dict[str, Any]:
    """Return the colour of each class in the shown masks."""
    from workflow_lib.metrics import pictures

    return {"colours": [pictures.colour(number) for number in range(len(evaluation["classes"]))]}


def outcomes(predictions: Path, evaluation: Mapping[str, Any]) -> Outcomes:
    """Return the content of predictions.csv."""
    from workflow_lib.metrics import masks

    return masks.outcomes(predictions)


TASK = Task(
    targets="masks",
    metrics={"mean_iou": "mean IoU", "dice": "Dice", "pixel_accuracy": "pixel accuracy", "loss": "loss"},
    curve=("mean_iou", "Mean IoU"),
    ranges={"mean_iou": SHARE, "dice": SHARE, "pixel_accuracy": SHARE, "loss": POSITIVE},
    larger_is_better=True,
    study_metric="val_mean_iou",
    settings=("label_smoothing", "focal_gamma", "class_weights"),
    answers="pixel",
    averaging=classification.AVERAGING,
    objective=objective,
    evaluate=evaluate,
    onnx=Onnx(
        output="logit",
        score=("pixel_accuracy", "Pixel accuracy"),
        score_of=correct_share,
        class_axis=1,
        probabilities=probabilities,
        pairs=with_numbers,
        at_most=rows_at_once,
    ),
    chapter=Chapter("masks", "Masks", chapter_values),
    probe=probe,
    predicted=predicted,
    masks=numbers_of,
    outcomes=outcomes,
)
