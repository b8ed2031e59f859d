"""torchmultimodal: the loss of CLIP and FLAVA, and the gather below it."""

from typing import Any

from peers.load import bare

bare("torchmultimodal", "torchmultimodal.modules", "torchmultimodal.modules.losses", "torchmultimodal.utils")

from torchmultimodal.modules.losses import contrastive_loss_with_temperature as contrastive  # noqa: E402
from torchmultimodal.utils.distributed import BackpropType, concat_gather_all_gpu  # noqa: E402


class ContrastiveLossWithTemperature:
    """Its function, whose scale is a logarithm; the class clamps it to [1, 100]."""

    def __init__(self, gather_with_grad: bool) -> None:
        self.backprop_type = BackpropType.GLOBAL if gather_with_grad else BackpropType.NONE

    def __call__(
        self, image_features: Any, text_features: Any, logit_scale: Any, output_dict: bool = False
    ) -> Any:
        term = contrastive.contrastive_loss_with_temperature(
            image_features, text_features, logit_scale.log(), backprop_type=self.backprop_type
        ).loss
        return {"contrastive_loss": term} if output_dict else term


def gather(image_features: Any, text_features: Any, local_loss: bool, gather_with_grad: bool) -> Any:
    kind = {(False, False): BackpropType.LOCAL, (True, False): BackpropType.NONE}
    backprop_type = kind.get((local_loss, gather_with_grad), BackpropType.GLOBAL)
    return tuple(concat_gather_all_gpu(f, backprop_type) for f in (image_features, text_features))
