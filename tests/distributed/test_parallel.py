"""A sharded model (fsdp) computes the same as a replicated model (ddp), in a fraction of the memory."""

from __future__ import annotations

import gc
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save_file
from torch import nn

from tests.support.crash import SURVIVED, fork_ranks
from workflow_lib import checkpoint
from workflow_lib.checkpoint import CheckpointStore, Snapshot
from workflow_lib.config.optimization import SGD, AdamW, Lion
from workflow_lib.distributed import parallel
from workflow_lib.distributed.fsdp import Sharded, units
from workflow_lib.distributed.parallel import Parallel
from workflow_lib.distributed.ranks import Peers, Ranks
from workflow_lib.errors import ConfigError
from workflow_lib.training.optimizers import build_optimizer

CPU = torch.device("cpu")
SAMPLES = 24


class Net(nn.Module):
    """Blocks, a tied weight, a buffer, a frozen weight, and tensors with fewer rows than ranks."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Linear(5, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(blocks))
        self.one, self.other = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.other.weight = self.one.weight
        self.norm = nn.BatchNorm1d(width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.last = nn.Linear(width, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.first(inputs)
        for block in self.blocks:
            hidden = hidden + torch.tanh(block(hidden))
        outputs: torch.Tensor = self.last(self.frozen(self.norm(self.other(self.one(hidden)))))
        return outputs


def net(width: int = 7, blocks: int = 2) -> Net:
    torch.manual_seed(1)
    return Net(width, blocks)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SAMPLES, 5, generator=generator), torch.randint(0, 2, (SAMPLES,), generator=generator)


def train(shared: Parallel, optimizer: torch.optim.Optimizer, peers: Peers, steps: int, clip: float | None) -> None:
    """Train on this rank's samples, with two micro-batches per step."""
    inputs, targets = data()
    mine = range(peers.rank * SAMPLES // peers.world_size, (peers.rank + 1) * SAMPLES // peers.world_size)
    for _ in range(steps):
        shared.zero_grad()
        for part in (mine[::2], mine[1::2]):
            rows = torch.tensor(part)
            loss = nn.functional.cross_entropy(shared.forward(inputs[rows]), targets[rows]) / 2
            loss.backward()
        shared.take_gradients()
        if clip is not None:
            shared.clip(clip)
        optimizer.step()


def built(kind: str, peers: Peers, section: Any = None, model: nn.Module | None = None) -> tuple[Parallel, Any]:
    ranks = Ranks(peers.rank, peers.rank, peers.world_size)
    shared = parallel.build(kind, model or net(), CPU, ranks)
    return shared, build_optimizer(section or AdamW(lr=0.01), shared.model, shared.parameters)


def save(folder: Path, shared: Parallel, optimizer: torch.optim.Optimizer, peers: Peers) -> None:
    """Save model and optimizer; all ranks save their shards, rank 0 saves a replicated model."""
    state = optimizer.state_dict()["state"]
    moments = {f"{number}.{name}": value for number, values in state.items() for name, value in values.items()}
    tensors, offsets = shared.files("moving", {"model": shared.state(), "optimizer": moments})
    if shared.is_shared or peers.is_main:
        writers = peers if shared.is_shared else None
        mine = CheckpointStore(folder, fingerprint={}, attempt="0" * 32, may_publish=lambda: True, peers=writers)
        mine.publish(Snapshot(1, tensors, {}, {}, offsets))


def saved(folder: Path, group: str = "model") -> dict[str, torch.Tensor]:
    """Return the whole tensors of the group from the only checkpoint."""
    content = checkpoint.read_group_file(checkpoint.read_manifest(*checkpoint.published(folder)), group)
    assert content is not None
    return load(content)


def compute(kind: str, section: Any, clip: float | None, folder: Path, peers: Peers) -> None:
    """Save the state after some steps, and the outputs of the weights and of averages half as large."""
    shared, optimizer = built(kind, peers, section)
    train(shared, optimizer, peers, 4, clip)
    save(folder / kind, shared, optimizer, peers)
    names = {id(weight): name for name, weight in reversed([*shared.names()])}
    halves = {names[id(weight)]: weight.detach() / 2 for weight in shared.parameters}
    shared.model.eval()
    with torch.inference_mode():
        outputs = {
            "of halves": shared.eval_forward(data()[0], halves),
            "of weights": shared.eval_forward(data()[0], None),
        }
    if peers.is_main:
        save_file({name: output.clone() for name, output in outputs.items()}, folder / f"{kind}.safetensors")


@pytest.mark.parametrize(
    ("ranks", "section", "clip"),
    [(2, AdamW(lr=0.01), None), (3, SGD(lr=0.1, momentum=0.9), 0.05), (1, Lion(lr=0.001), None)],
    ids=["adamw", "sgd", "lion"],
)
def test_a_sharded_model_learns_and_computes_the_same_as_a_replicated_one(
    tmp_path: Path, ranks: int, section: Any, clip: float | None
) -> None:
    """Up to rounding, since sums over ranks have another order."""
    for kind in ("ddp", "fsdp"):
        assert fork_ranks(ranks, partial(compute, kind, section, clip, tmp_path), tmp_path / "m") == [SURVIVED] * ranks
    start = net().state_dict()
    for group in ("model", "optimizer"):
        replicated, sharded = saved(tmp_path / "ddp", group), saved(tmp_path / "fsdp", group)
        assert replicated.keys() == sharded.keys()
        torch.testing.assert_close(sharded, replicated, rtol=1e-3, atol=1e-5)
    assert not torch.equal(saved(tmp_path / "fsdp")["blocks.0.0.weight"], start["blocks.0.0.weight"])
    outputs = [load_file(tmp_path / f"{kind}.safetensors") for kind in ("ddp", "fsdp")]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(outputs[1]["of halves"], outputs[1]["of weights"])


def read(folder: Path, peers: Peers) -> None:
    """Load the checkpoint of other ranks into a new model, and save it again."""
    shared, optimizer = built("fsdp", peers)
    train(shared, optimizer, peers, 1, None)
    groups = shared.read(*checkpoint.published(folder / "before"))
    shared.load(groups["model"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in groups["optimizer"].items():
        number, name = key.split(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    save(folder / "after", shared, optimizer, peers)


def write(folder: Path, peers: Peers) -> None:
    shared, optimizer = built("fsdp", peers)
    train(shared, optimizer, peers, 2, None)
    save(folder / "before", shared, optimizer, peers)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_any_number_of_ranks_reads_the_checkpoint_of_any_other_number(tmp_path: Path, before: int, after: int) -> None:
    assert fork_ranks(before, partial(write, tmp_path), tmp_path / "m") == [SURVIVED] * before
    assert fork_ranks(after, partial(read, tmp_path), tmp_path / "m") == [SURVIVED] * after
    for group in ("model", "optimizer"):
        written, reread = saved(tmp_path / "before", group), saved(tmp_path / "after", group)
        assert written.keys() == reread.keys()
        assert all(torch.equal(written[name], reread[name]) for name in written)


def live() -> list[torch.Tensor]:
    """All tensors of this process."""
    return [found for found in gc.get_objects() if type(found) in (torch.Tensor, nn.Parameter)]


def memory_of(tensors: list[torch.Tensor]) -> dict[int, int]:
    """Return address and size in bytes of each storage that the tensors use."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def measure(folder: Path, peers: Peers) -> None:
    """Write how many bytes the tensors take that exist after some steps, without those that existed at the fork."""
    inherited = live()  # the references keep new tensors from reusing their addresses
    model = net(192, 6)
    sizes = [(1 + 2 * weight.requires_grad) * weight.nbytes for weight in model.parameters()]
    shared, optimizer = built("fsdp", peers, model=model)
    train(shared, optimizer, peers, 2, None)
    shared.model.eval()
    with torch.inference_mode():
        shared.eval_forward(data()[0], None)
    shared.zero_grad()
    del model
    gc.collect()
    known = memory_of(inherited).keys()
    held = sum(size for address, size in memory_of(live()).items() if address not in known)
    (folder / f"bytes-{peers.rank}").write_text(f"{sum(sizes)} {held}")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_rank_holds_only_its_shards_of_weights_and_moments(tmp_path: Path, ranks: int) -> None:
    """Weights, and the two moments of AdamW of trained weights, divided by the ranks; 5 % for tensors not sharded."""
    assert fork_ranks(ranks, partial(measure, tmp_path), tmp_path / "m") == [SURVIVED] * ranks
    for rank in range(ranks):
        whole, held = map(int, (tmp_path / f"bytes-{rank}").read_text().split())
        assert held == pytest.approx(whole / ranks, rel=0.05)


def overflow(folder: Path, peers: Peers) -> None:
    """Put an infinity into the gradients of ranks 1 and 2: no rank makes the step, and all lower the scale."""
    shared, optimizer = built("fsdp", peers, SGD(lr=0.1, momentum=0.9))
    scaler = shared.scaler(enabled=True)
    inputs, targets = data()
    scaler.scale(nn.functional.cross_entropy(shared.forward(inputs), targets)).backward()
    shared.take_gradients()
    if peers.rank:
        grad = shared.parameters[0].grad
        assert grad is not None
        grad[0] = torch.inf
    before = [weight.detach().clone() for weight in shared.parameters]
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert all(map(torch.equal, before, shared.parameters))
    (folder / f"scale-{peers.rank}").write_text(str(scaler.get_scale()))


def test_a_step_that_overflows_on_some_ranks_is_skipped_on_all(tmp_path: Path) -> None:
    assert fork_ranks(3, partial(overflow, tmp_path), tmp_path / "m") == [SURVIVED] * 3
    assert [(tmp_path / f"scale-{rank}").read_text() for rank in range(3)] == ["32768.0"] * 3


def count(folder: Path, peers: Peers) -> None:
    """Change a buffer of rank 1 before a step: the step uses the buffer of rank 0."""
    shared, _ = built("fsdp", peers)
    counter = shared.state()["norm.num_batches_tracked"]
    counter.fill_(100 * peers.rank)
    shared.forward(data()[0])
    assert counter.item() == 1


def test_every_step_begins_with_the_buffers_of_rank_0_which_are_saved(tmp_path: Path) -> None:
    assert fork_ranks(2, partial(count, tmp_path), tmp_path / "m") == [SURVIVED] * 2


def test_blocks_are_gathered_one_by_one_and_shared_weights_with_the_rest() -> None:
    model = net()
    model.pair = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model.pair[1].weight = model.first.weight
    model.no_weights = nn.Sequential(nn.ReLU())
    inside = nn.Sequential(nn.Linear(2, 2))
    model.nested = nn.ModuleList([nn.ModuleList([inside, nn.ModuleDict({"a": nn.Linear(2, 2)})])])
    found = [name for name, module in model.named_modules() if module in units(model)]
    assert found == ["blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1", "pair.0", "nested.0.0.0", "nested.0.1.a"]


def single(folder: Path, peers: Peers) -> None:
    model = net()
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match="training.parallel: fsdp cannot shard the weight scale, a single number"):
        Sharded(model, CPU, Ranks())


def test_a_weight_that_cannot_be_sharded_is_named(tmp_path: Path) -> None:
    assert fork_ranks(1, partial(single, tmp_path), tmp_path / "m") == [SURVIVED]
