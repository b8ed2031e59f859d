import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel


class Trainer:
    def __init__(self, rank, world_size, lr=0.1):
        net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))
        self.model = DistributedDataParallel(net) if world_size > 1 else net
        self.optimizer = torch.optim.SGD(net.parameters(), lr, momentum=0.9)

    def batch(self, rows, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(rows, 8, generator=generator)
        return {"x": x, "y": torch.randint(4, (rows,), generator=generator)}

    def step(self, *micro_batches):
        self.optimizer.zero_grad()
        losses = []
        for batch in micro_batches:
            loss = cross_entropy(self.model(batch["x"]), batch["y"])
            loss.backward()
            losses.append(loss.item())
        self.optimizer.step()
        return sum(losses) / len(losses)


def make_step(rank, world_size, **options):
    return Trainer(rank, world_size, **options)
