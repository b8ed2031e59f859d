"""The contract of SimCLR's loss."""

from verified_losses.oracles.ntxent import ntxent_loss

from ..cases import Case
from ..forms import Form
from . import Contract
from .clip import ClipContract
from .infonce import InfoNceContract, LearnedInfoNceContract


class NTXentContract(InfoNceContract):
    """The mean cross-entropy of each view's partner among all other views.

    The subject is constructed with a `temperature` and called with the first and the second views.
    """

    name = "ntxent"
    function = staticmethod(ntxent_loss)

    def in_form(self, form: Form) -> Contract:
        return LearnedNTXentContract() if form.parameters else self

    def gradient_expected(self, case: Case) -> dict[str, bool]:
        """Both views are anchors."""
        return ClipContract.gradient_expected(self, case)


class LearnedNTXentContract(LearnedInfoNceContract, NTXentContract):
    """SimCLR's loss whose temperature is learned."""
