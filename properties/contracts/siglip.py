"""The contract of the sigmoid loss."""

from typing import Any

from hypothesis import strategies as st

from verified_losses.oracles.bounds import Blocks
from verified_losses.oracles.siglip import siglip_loss

from ..cases import Case, Options
from ..names import DIST_IMPLS
from ..subjects import Subject
from . import accepted, call_by_name, entry
from .calls import Call
from .clip import ClipContract
from .parts import STUDENT

CHUNK_SIZES = st.sampled_from([0, 0, 1, 3, 64])


def call_with_bias(loss: Any, given: dict[str, Any], output_dict: bool) -> Any:
    """Call a loss, which may have no default for the bias, as upstream's has none."""
    return call_by_name(loss, accepted(entry(loss), {"logit_bias": None}) | given, output_dict)


class SigLipContract(ClipContract):
    """A binary cross-entropy for every image and text of all ranks."""

    name = "siglip"
    options_in = {"horovod": (("dist_impl", "gather"), ("use_horovod", True))}
    assumed = {"chunk_size": 0}
    optional = ("output_dict",)
    call_with = staticmethod(call_with_bias)

    def options(self, subject: Subject, world_size: int) -> st.SearchStrategy[Options]:
        ways = st.sampled_from([*DIST_IMPLS, None])
        return st.builds(lambda way, size: (("dist_impl", way), ("chunk_size", size)), ways, CHUNK_SIZES)

    def obeys_mean(self, case: Case) -> bool:
        return True

    def calls(self, case: Case) -> dict[str, Call]:
        return {"contrastive_loss": Call(siglip_loss, STUDENT)}

    def blocks(self, case: Case) -> Blocks:
        """Each rank's texts, and each chunk of images, may give a part of its own."""
        return Blocks(case.option("chunk_size", 0), case.world_size)
