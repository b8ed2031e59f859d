"""InfoNCE against a queue that the loss holds."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ranks import gather


class HeldQueue(nn.Module):
    """As MoCo: a buffer, and a pointer to what is overwritten next."""

    queue: Tensor
    pointer: Tensor

    def __init__(self, queue_size: int, width: int, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = temperature
        self.register_buffer("queue", F.normalize(torch.randn(queue_size, width)))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        loss = self.compared(query, key.detach(), self.queue.clone().detach())
        self.enqueue(key.detach())
        return loss

    def compared(self, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        own = (query * key).sum(1, keepdim=True)
        logits = torch.cat([own, query @ queue.T], 1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long, device=query.device))

    @torch.no_grad()
    def enqueue(self, key: Tensor) -> None:
        start = int(self.pointer)
        self.queue[start : start + len(key)] = key
        self.pointer[0] = (start + len(key)) % len(self.queue)


class Shifted(HeldQueue):
    """The queue lies the other way round, and moves up: there is no pointer."""

    def __init__(self, queue_size: int, width: int, temperature: float = 0.07) -> None:
        super().__init__(queue_size, width, temperature)
        self.queue = self.queue.T.contiguous()

    def compared(self, query: Tensor, key: Tensor, queue: Tensor) -> Tensor:
        return super().compared(query, key, queue.T)

    def enqueue(self, key: Tensor) -> None:
        self.queue = torch.cat([self.queue[:, len(key) :], key.T.detach()], 1)


class Gathered(HeldQueue):
    """Every rank puts the keys of all ranks into its queue, rank 0's first: queues stay equal."""

    @torch.no_grad()
    def enqueue(self, key: Tensor) -> None:
        super().enqueue(gather(key))


class EnqueuesOwnRows(HeldQueue):
    @torch.no_grad()
    def enqueue(self, key: Tensor) -> None:
        gather(key)
        super().enqueue(key)


class EnqueuesFirst(HeldQueue):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        self.enqueue(key.detach())
        return self.compared(query, key.detach(), self.queue.clone().detach())


class PointerStays(HeldQueue):
    @torch.no_grad()
    def enqueue(self, key: Tensor) -> None:
        self.queue[: len(key)] = key


class PointerMovesByOne(HeldQueue):
    @torch.no_grad()
    def enqueue(self, key: Tensor) -> None:
        start = int(self.pointer)
        places = (start + torch.arange(len(key))) % len(self.queue)
        self.queue[places] = key
        self.pointer[0] = (start + 1) % len(self.queue)


class KeepsGraph(Shifted):
    """Keys are put into the queue with what they were computed from."""

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        loss = self.compared(query, key.detach(), self.queue)
        self.queue = torch.cat([self.queue[:, len(key) :], key.T], 1)
        return loss


class KeysWithGradient(HeldQueue):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        loss = self.compared(query, key, self.queue.clone().detach())
        self.enqueue(key.detach())
        return loss


class NeverEnqueues(HeldQueue):
    def enqueue(self, key: Tensor) -> None:
        pass


class EnqueuesQueries(HeldQueue):
    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        loss = self.compared(query, key.detach(), self.queue.clone().detach())
        self.enqueue(query.detach())
        return loss
