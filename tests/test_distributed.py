"""Two gloo processes against one: DistributedDataParallel and SyncBatchNorm on our layers."""

import copy
import datetime

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn

import pyconv
import pyconv.nn as ours
from pyconv.train import distributed

pytestmark = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch was built without gloo"
)

close = torch.testing.assert_close
PROCESSES = 2


def network(batch_norm=True):
    torch.manual_seed(0)
    return nn.Sequential(
        ours.Conv2d(2, 4, 3, padding=1),
        ours.BatchNorm2d(4) if batch_norm else nn.Identity(),
        nn.ReLU(),
        ours.MaxPool2d(2),
        ours.ConvTranspose2d(4, 3, 2, stride=2),
        ours.BatchNorm2d(3, momentum=None) if batch_norm else nn.Identity(),
        ours.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 3),
    ).double()


def data():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 2, 8, 8, dtype=torch.float64, generator=generator)
    return images, torch.tensor([0, 1, 2, 1, 0, 2])


def train(model, images, target, *, steps=3, share=1.0):
    """A few steps of SGD on sum(loss) * share, and the outputs seen on the way."""
    optimiser, outputs = torch.optim.SGD(model.parameters(), lr=0.1), []
    for _ in range(steps):
        optimiser.zero_grad()
        y = model(images)
        outputs.append(y.detach())
        (nn.functional.cross_entropy(y, target, reduction="sum") * share).backward()
        optimiser.step()
    return outputs


def compare(model, alone, slice_):
    """DDP averages gradients: a process takes 2 / 6 of its loss where one alone takes 1 / 6."""
    images, target = data()
    expected = train(alone, images, target, share=1 / 6)
    parallel = distributed.parallel(model, torch.device("cpu"))
    outputs = train(parallel, images[slice_], target[slice_], share=PROCESSES / 6)
    close(outputs, [y[slice_] for y in expected])
    close(parallel.module.state_dict(), alone.state_dict())


def ddp(rank):
    compare(network(batch_norm=False), network(batch_norm=False), slice(rank * 3, rank * 3 + 3))


def converted_under_ddp(rank):
    model = pyconv.convert(pyconv.revert(network(batch_norm=False)))
    compare(model, network(batch_norm=False), slice(rank * 3, rank * 3 + 3))


def sync_batch_norm(rank):
    """torch's own convert, then ours; and ours in one step. The processes hold 2 and 4 images."""
    part = slice(0, 2) if rank == 0 else slice(2, 6)
    compare(pyconv.convert(nn.SyncBatchNorm.convert_sync_batchnorm(network())), network(), part)
    model = ours.SyncBatchNorm.convert_sync_batchnorm(network())
    assert [type(m) for m in model if "Norm" in type(m).__name__] == [ours.SyncBatchNorm] * 2
    compare(model, network(), part)


def sync_batch_norm_layer(rank):
    """Input gradient, second gradient, an empty batch, channels_last, evaluation."""
    torch.manual_seed(3)
    layer, alone = ours.SyncBatchNorm(3).double(), ours.BatchNorm2d(3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.rand(3) + 0.5)
    alone.load_state_dict(layer.state_dict())
    x, dy = torch.randn(2, 4, 3, 5, 5, dtype=torch.float64)
    for part in (slice(0, 1), slice(1, 4)), (slice(0, 0), slice(0, 4)):
        mine = part[rank]
        whole = x.clone().requires_grad_()
        local = x[mine].clone().to(memory_format=torch.channels_last).requires_grad_()
        y, expected = layer(local), alone(whole)
        close(y, expected[mine])
        (g,) = torch.autograd.grad(y, local, dy[mine], create_graph=True)
        (expected_g,) = torch.autograd.grad(expected, whole, dy, create_graph=True)
        close(g, expected_g[mine])
        (gg,) = torch.autograd.grad(g.square().sum(), local)
        close(gg, torch.autograd.grad(expected_g.square().sum(), whole)[0][mine])
        close(layer.state_dict(), alone.state_dict())
    close(layer.eval()(x), alone.eval()(x))
    lonely = torch.ones(1 if rank == 0 else 0, 3, 1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer.train()(lonely)


def sync_batch_norm_half_precision(rank):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 5)
    layer, alone = ours.SyncBatchNorm(3), ours.BatchNorm2d(3)
    mine = slice(rank * 2, rank * 2 + 2)
    y, expected = layer(x[mine].bfloat16()), alone(x.bfloat16())
    assert y.dtype == torch.bfloat16
    close(y, expected[mine])
    close(layer.state_dict(), alone.state_dict())


CHECKS = (
    ddp,
    converted_under_ddp,
    sync_batch_norm,
    sync_batch_norm_layer,
    sync_batch_norm_half_precision,
)


def process(rank, store):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=PROCESSES,
        timeout=datetime.timedelta(seconds=120),
    )
    for check in CHECKS:
        try:
            check(rank)
        except Exception as error:
            raise AssertionError(f"{check.__name__}, process {rank}") from error
    dist.destroy_process_group()


def test_two_processes_compute_what_one_does(tmp_path):
    """One pair of processes for all of CHECKS: starting them takes longer than the checks."""
    torch.multiprocessing.spawn(process, (tmp_path / "store",), nprocs=PROCESSES)


def test_sync_batch_norm_in_one_process_is_batch_norm():
    layer, twin = ours.SyncBatchNorm(3), ours.BatchNorm2d(3)
    x = torch.randn(2, 3, 4, 4)
    close(layer(x), twin(x), rtol=0, atol=0)
    volumes = torch.randn(2, 3, 4, 4, 4)
    close(layer(volumes), copy.deepcopy(nn.SyncBatchNorm(3))(volumes))


def test_convert_sync_batchnorm_keeps_weights_and_a_lone_layer():
    layer = ours.BatchNorm2d(3, eps=1e-3, momentum=0.2).eval()
    for convert in (
        nn.SyncBatchNorm.convert_sync_batchnorm,
        ours.SyncBatchNorm.convert_sync_batchnorm,
    ):
        synced = convert(layer)
        assert synced.weight is layer.weight
        assert synced.running_mean is layer.running_mean
        assert (synced.eps, synced.momentum, synced.training) == (1e-3, 0.2, False)
        assert list(synced.state_dict()) == list(layer.state_dict())
    assert type(synced) is ours.SyncBatchNorm
