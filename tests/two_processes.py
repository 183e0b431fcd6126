"""Two processes that train as one does: started by ``test_attachments``, with a file to meet in.

Each takes its half of a batch for two steps, in float64; losses and gradients are compared with those of one process
that takes all of it.
"""

import itertools
import sys

import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from rcmha_lite.config import CELLS, Config
from rcmha_lite.model import LanguageModel

SMALL = Config(
    vocabulary=11, layers=2, d_model=16, n_heads=2, d_ff=24, d_position=6, context=16, window=16, zero_output=False,
    kernel_init="pytorch",
)  # fmt: skip
GRID = CELLS | {
    "tied": {"tie_embeddings": True}, "learned": {"position": "relative-learned", "fresh_queries": True},
    "rope": {"position": "rope"}, "alibi": {"position": "alibi"},
}  # fmt: skip


def shared(model: LanguageModel, way: str) -> nn.Module:
    """The model as ``way`` has it: each call of a block or layer gathers its weights and lets them go again."""
    mesh = init_device_mesh("cpu", (2,))
    if way == "ddp":
        return DistributedDataParallel(model)
    if way == "tensor":
        for block in model.blocks:
            gathered = {
                f"attention.{name}": ColwiseParallel(output_layouts=Replicate()) for name in ("query", "key", "value")
            }
            plan = gathered | {"feed_forward.input": ColwiseParallel(), "feed_forward.output": RowwiseParallel()}
            parallelize_module(block, mesh, plan)
        return model
    for module in [*model.modules()]:
        if way == "blocks" and module in [*model.blocks]:
            fully_shard(module, mesh=mesh)
        if way == "layers" and isinstance(module, nn.Linear | nn.Embedding):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train(model: nn.Module, texts: list[torch.Tensor]) -> list[torch.Tensor]:
    """Losses of two steps, and the gradients of the second."""
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for text in texts:
        optimizer.zero_grad()
        logits, _ = model(text)
        loss = F.cross_entropy(logits.flatten(0, 1), text.flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gradients = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in model.parameters()]
    return [torch.stack(losses), *gradients]


def work(rank: int, file: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    for way, (cell, changes) in itertools.product(("ddp", "blocks", "layers", "tensor"), GRID.items()):
        if way != "ddp" and cell not in ("mha", "rcmha", "tied"):
            continue
        torch.manual_seed(3)
        alone = LanguageModel(SMALL.replace(**changes)).double()
        several = LanguageModel(alone.config).double()
        several.load_state_dict(alone.state_dict())
        texts = list(torch.randint(11, (2, 4, 12)))
        mine = texts if way == "tensor" else [text.chunk(2)[rank] for text in texts]
        expected, found = train(alone, texts), train(shared(several, way), mine)
        if way != "tensor":
            distributed.all_reduce(found[0])
            found[0] /= 2
        for right, ours in zip(expected, found, strict=True):
            assert torch.allclose(ours, right, rtol=0, atol=1e-10), (cell, way, (ours - right).abs().max())
    distributed.destroy_process_group()


if __name__ == "__main__":
    multiprocessing.start_processes(work, (sys.argv[1],), nprocs=2, start_method="fork")
