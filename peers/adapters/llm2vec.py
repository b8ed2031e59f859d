"""llm2vec: queries to documents. An adapter, as the package's own `__init__` needs an older transformers."""

from peers.load import bare

bare("llm2vec", "llm2vec.loss")

from llm2vec.loss import HardNegativeNLLLoss as module  # noqa: E402


class HardNegativeNLLLoss(module.HardNegativeNLLLoss):
    """The temperature is the inverse of its scale."""

    def __init__(self, temperature: float) -> None:
        super().__init__(1 / temperature)
