"""The contrastive captioner's loss."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn import functional as F

from . import captions, checks
from .checks import Agree, Convention, Facts, Scalar
from .clip import ClipLoss
from .contrast import widen
from .gather import Rows
from .implementations import Implementation, streams_tokens
from .memory import StatedMemory, of_hidden, of_logits


class CoCaLoss(ClipLoss):
    """A weighted contrastive term and a weighted caption term.

    The contrastive term is `clip_loss_weight` times `ClipLoss`. With logits z[k] and the label y[k] of each
    of the T tokens that are not padding::

        caption_loss = -caption_loss_weight / T * sum over k of log softmax(z[k])[y[k]]

    With `label_smoothing` and `z_loss` a token costs what `fused_linear_cross_entropy` says instead. Hidden
    states and the weight of the vocabulary may be given in place of logits, which then are never all in
    memory: those of `captions.CHUNK` tokens are.

    Over several ranks T counts the tokens of all of them (convention "open_clip": of this rank), and the mean
    over ranks of both terms, and of all gradients, equals those of one process. A batch of padding alone
    costs 0 and has zero gradient. A term of weight 0 is a constant 0, and nothing is computed for it.

    As in open_clip an attribute `caption_loss`, or a method of a subclass, is called in place of the formula:
    `caption_loss(logits, labels)`, with [b, v, t] logits, all at once. What it returns is taken for the mean
    over this rank's tokens; where these are none it is not called. By default there is no such attribute.

    Labels are checked, and a wrong one is named. Compiled in one process they are not read, so that the loss
    is one graph; a label outside the vocabulary then raises torch's own error.

    Args:
        caption_loss_weight: the factor of the caption term.
        clip_loss_weight: the factor of the contrastive term.
        pad_id: the label that is no token; it need not be in the vocabulary.
        local_loss: compare this rank's rows with all ranks', instead of all with all.
        gather_with_grad: let gradients flow back to the ranks that the gathered rows came from. Second
            derivatives over several ranks equal those of one process with it alone.
        cache_labels: keep what `get_ground_truth` returns between calls.
        rank: this rank, counted within `group`; None takes it from there.
        world_size: the number of ranks in `group`; None takes it from there.
        use_horovod: the ranks are those of Horovod, which runs already, instead of a process group.
        convention: "exact" obeys the mean over ranks; "open_clip" gives upstream's gradients, and a caption
            term that is a mean over this rank's tokens.
        group: the process group; None is the default one.
        implementation: "dense" holds all contrastive logits at once, and copies of all caption logits;
            "streamed" holds one tile or chunk, and computes it again in the backward; so does "triton", with
            kernels for a GPU for the contrastive term; "auto" takes what is faster, or fits, as `explain`
            says of that term.
        tile_size: rows and columns of a tile, and tokens of a chunk. None takes 256 rows and 1024 columns on
            a CPU, which are fast there, and 8192 rows and columns elsewhere, which were not measured; of
            tokens it takes as many as are fast on a CPU.
        agree: "always" tells all ranks of the rows and arguments of each call, so that what is wrong, or
            differs, raises on every rank. "once" does so for the first call of a shape, dtype and
            requires_grad; a rank that is given these again takes the other ranks to have what they had then.
            If they have not, the loss is wrong without an error, or ranks wait: two ranks may not have 3 and
            2 rows, then 2 and 3, then 3 and 3. What is wrong in a later call raises on its rank alone, and
            the others wait until their process group's timeout.
            The numbers of tokens are exchanged at every call.
        label_smoothing: the share of a token's probability that all of the vocabulary have alike.
        z_loss: the factor of the square of a token's log-sum-exp.

    Raises:
        ValueError: `rank` is outside the world, or None without a group; `convention`, `implementation` or
            `agree` is unknown; `tile_size` is below 1; `label_smoothing` is outside [0, 1]; `z_loss` is below
            0 or not finite; or `group` is given with `use_horovod`.
        TypeError: a weight, `label_smoothing` or `z_loss` is no number, `pad_id` no int, or `tile_size`
            neither an int nor None.
        ImportError: `use_horovod` is set and Horovod is not installed.
        RuntimeError: `use_horovod` is set and hvd.init() has not been called.

    Warns:
        UserWarning: `local_loss=True, gather_with_grad=False` over several ranks treats gathered rows as
            constants, which no weighting can make equal to the single process; or `world_size=1` is one
            of several ranks of the process group.

    References:
        Yu et al., CoCa: Contrastive Captioners are Image-Text Foundation Models, 2022, equations 1 to 4,
        https://arxiv.org/abs/2205.01917

    Example:
        >>> import torch
        >>> image_features = text_features = torch.eye(2)
        >>> logits = torch.zeros(2, 3, 4)  # of 3 tokens a caption, in a vocabulary of 4
        >>> labels = torch.tensor([[1, 2, 3], [2, 0, 0]])  # 0 is padding
        >>> loss = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
        >>> contrastive_loss, caption_loss = loss(image_features, text_features, logits, labels, 1.0)
        >>> print(f"{contrastive_loss:.4f} {caption_loss:.4f}")  # log(1 + exp(-1)), 2 log(4)
        0.3133 2.7726
    """

    def __init__(
        self,
        caption_loss_weight: float,
        clip_loss_weight: float,
        pad_id: int = 0,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int | None = 0,
        world_size: int | None = 1,
        use_horovod: bool = False,
        *,
        convention: Convention = "exact",
        group: Any = None,
        implementation: Implementation = "auto",
        tile_size: int | None = None,
        agree: Agree = "always",
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        weights = {"caption_loss_weight": caption_loss_weight, "clip_loss_weight": clip_loss_weight}
        for name, weight in weights.items():
            if not isinstance(weight, int | float):
                raise TypeError(f"{name}: expected a number, got {type(weight).__name__}")
        kind = captions.token_loss(pad_id, label_smoothing, z_loss, "pad_id")
        super().__init__(
            local_loss,
            gather_with_grad,
            cache_labels,
            rank,
            world_size,
            use_horovod,
            convention=convention,
            group=group,
            implementation=implementation,
            tile_size=tile_size,
            agree=agree,
        )
        self.caption_loss_weight = caption_loss_weight
        self.clip_loss_weight = clip_loss_weight
        self.pad_id = pad_id
        self.label_smoothing, self.z_loss = kind.smoothing, kind.z_loss

    def extra_repr(self) -> str:
        """Return the options that differ from their defaults, which `repr` shows."""
        return checks.options(self, CoCaLoss.__init__)

    @property
    def waits_for_device(self) -> bool:
        """Whether the host waits for the GPU: labels that are checked are read, unless captions count 0."""
        return super().waits_for_device or bool(self.caption_loss_weight)

    @overload  # type: ignore[override]
    def forward(
        self, image_features: Tensor, text_features: Tensor, logits: Tensor | None, labels: Tensor,
        logit_scale: Scalar, output_dict: Literal[False] = False, *, logit_bias: Scalar | None = None,
        hidden_states: Tensor | None = None, vocabulary_weight: Tensor | None = None,
        vocabulary_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip
    @overload
    def forward(
        self, image_features: Tensor, text_features: Tensor, logits: Tensor | None, labels: Tensor,
        logit_scale: Scalar, *, output_dict: Literal[True], logit_bias: Scalar | None = None,
        hidden_states: Tensor | None = None, vocabulary_weight: Tensor | None = None,
        vocabulary_bias: Tensor | None = None
    ) -> dict[str, Tensor]: ...  # fmt: skip
    @overload
    def forward(
        self, image_features: Tensor, text_features: Tensor, logits: Tensor | None, labels: Tensor,
        logit_scale: Scalar, output_dict: bool = False, *, logit_bias: Scalar | None = None,
        hidden_states: Tensor | None = None, vocabulary_weight: Tensor | None = None,
        vocabulary_bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]: ...  # fmt: skip
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logits: Tensor | None,
        labels: Tensor,
        logit_scale: Scalar,
        output_dict: bool = False,
        *,
        logit_bias: Scalar | None = None,
        hidden_states: Tensor | None = None,
        vocabulary_weight: Tensor | None = None,
        vocabulary_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Return the weighted contrastive and caption losses, two scalars.

        Args:
            image_features: [n, d], floating, normalised by the caller.
            text_features: [n, d], row i the partner of image i, on the same device; dtypes may differ under
                autocast.
            logits: [b, t, v] floating scores of the next token, on the same device; None where hidden states
                are given.
            labels: [b, t] int64 token ids in [0, v), or `pad_id`.
            logit_scale: the inverse temperature, a number or a tensor of shape [] or [1].
            output_dict: return {"contrastive_loss": ..., "caption_loss": ...}.
            logit_bias: added to contrastive logits, a number or a tensor of shape [] or [1]; None is 0.
            hidden_states: [b, t, width] floating, on the same device: logits are hidden_states @
                vocabulary_weight.T + vocabulary_bias.
            vocabulary_weight: [v, width], of the dtype of `hidden_states`; dtypes may differ under autocast.
            vocabulary_bias: [v]; None adds nothing.

        Raises:
            TypeError, ValueError: an argument is wrong on some rank, or ranks disagree; every rank raises.
            RuntimeError: torch.distributed is not initialised and `world_size` is over 1.
        """
        scores = _Scores(logits, hidden_states, vocabulary_weight, vocabulary_bias)

        def check() -> Facts:
            facts = self._check(image_features, text_features, logit_scale, logit_bias)
            name, states = scores.check(image_features)
            counts = bool(self.caption_loss_weight)
            tokens = self._count_tokens(states, labels, scores.classes, name) if counts else 0
            if self._own_caption_loss:
                for option, value in (("label_smoothing", self.label_smoothing), ("z_loss", self.z_loss)):
                    if value:
                        raise ValueError(
                            f"{option}: expected 0 where caption_loss is overridden, got {value}"
                        )
            weights = f"weights {self.clip_loss_weight}, {self.caption_loss_weight}"
            if self.label_smoothing or self.z_loss:
                weights += f", label_smoothing {self.label_smoothing}, z_loss {self.z_loss}"
            return Facts(facts.rows, tokens, f"{facts.common} {weights}")

        everyone = self._agree_facts(check, bool(self.caption_loss_weight))
        contrastive_loss = caption_loss = widen(image_features.new_zeros(()))
        if self.clip_loss_weight:
            rows = tuple(facts.rows for facts in everyone)
            contrastive_loss = self.clip_loss_weight * self._contrastive(
                image_features, text_features, logit_scale, logit_bias, rows
            )
        if self.caption_loss_weight:
            tokens = [facts.tokens for facts in everyone]
            caption_loss = self.caption_loss_weight * self._caption_loss(scores, labels, tokens)
        if output_dict:
            return {"contrastive_loss": contrastive_loss, "caption_loss": caption_loss}
        return contrastive_loss, caption_loss

    def stated_memory(self, *, rows: Rows | None = None, **inputs: Any) -> StatedMemory:
        """Return how many bytes a call and its backward save, and take at most, on this rank.

        `verified_losses.memory` has the formulas, which the loss is held to.

        Args:
            rows: the pairs of each rank; None is for as many on each as here.
            inputs: the arguments of a call, by name.
        """
        names = ("logits", "hidden_states", "vocabulary_weight")
        logits, hidden, weight = map(inputs.get, names)
        scores = _Scores(logits, hidden, weight, None)  # what is stated has room for a bias
        form = "dense" if self._own_caption_loss else self.implementation
        of_captions = scores.memory(form, self.tile_size)
        return self._pairs_memory(inputs["image_features"], rows).plus(of_captions)

    @property
    def _own_caption_loss(self) -> Callable[[Tensor, Tensor], Tensor] | None:
        own: Callable[[Tensor, Tensor], Tensor] | None = getattr(self, "caption_loss", None)
        return own

    def _caption_loss(self, scores: "_Scores", labels: Tensor, tokens: list[int | Tensor]) -> Tensor:
        """Return the caption loss, unweighted, given how many tokens each rank holds."""
        own, mine = self._own_caption_loss, tokens[self.rank]
        if own is not None and not (isinstance(mine, int) and mine == 0):
            mean = own(scores.all_logits().permute(0, 2, 1), labels)
            if self.convention == "open_clip" or self.world_size == 1:
                return mean
            return mean * (mine * self.world_size / sum(tokens))
        if self.convention == "exact":
            weight = self.world_size / _at_least_one(sum(tokens))
        else:
            weight = 1 / _at_least_one(tokens[self.rank])
        kind = captions.TokenLoss(self.pad_id, self.label_smoothing, self.z_loss)
        return weight * scores.costs(labels, kind, self.implementation, self.tile_size)

    def _count_tokens(self, states: Tensor, labels: Tensor, classes: int, name: str) -> int | Tensor:
        """Check the labels and return how many are not padding: a tensor, unread, where this is compiled."""
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels: expected an int64 tensor, got {got}")
        checks.no_dtensor("labels", labels)
        if labels.shape != states.shape[:2]:
            raise ValueError(
                f"labels: expected the first two dimensions of {name}, {list(states.shape[:2])}, "
                f"got {list(labels.shape)}"
            )
        if labels.device != states.device:
            raise ValueError(f"labels: expected the device of {name}, {states.device}, got {labels.device}")
        if torch.compiler.is_compiling():
            return (labels != self.pad_id).sum().to(widen(states).dtype)
        return captions.count_tokens(labels, classes, captions.TokenLoss(self.pad_id), "labels", "pad_id")


class _Scores(NamedTuple):
    """The scores of the next tokens: logits, or what makes them."""

    logits: Tensor | None
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def check(self, features: Tensor) -> tuple[str, Tensor]:
        """Return what has a row for each token, and its name; raise unless it is right, near features."""
        if self.hidden is None:
            for name, given in (("vocabulary_weight", self.weight), ("vocabulary_bias", self.bias)):
                if given is not None:
                    raise ValueError(f"{name}: expected None where hidden_states are not given")
            logits = checks.floating("logits", self.logits, 3, may_be_empty=True)
            return "logits", _near("logits", logits, features)
        if self.logits is not None:
            raise ValueError("logits: expected None where hidden_states are given")
        hidden = checks.floating("hidden_states", self.hidden, 3, may_be_empty=True)
        hidden = _near("hidden_states", hidden, features)
        weight = checks.floating("vocabulary_weight", self.weight, 2)
        names = "hidden_states", "vocabulary_weight", "vocabulary_bias"
        captions.check_projection(hidden, weight, self.bias, *names)
        return "hidden_states", hidden

    @property
    def classes(self) -> int:
        """The number of words, of what was checked."""
        if self.logits is not None:
            return self.logits.shape[-1]
        assert self.weight is not None
        return len(self.weight)

    def memory(self, form: Implementation, chunk: int | None) -> StatedMemory:
        """Return what the tokens take."""
        if self.logits is not None:
            count, length, words = self.logits.shape
            streamed = streams_tokens(form, self.logits.numel(), self.logits.device)
            most = chunk or max(captions.PASS // words, 1)
            return of_logits(streamed, count * length, words, most, self.logits.dtype)
        assert self.hidden is not None
        count, length, width = self.hidden.shape
        shape = count * length, self.classes, width, chunk or captions.CHUNK
        return of_hidden(form != "dense", *shape, self.hidden.dtype)

    def all_logits(self) -> Tensor:
        """Return the logits of all tokens."""
        if self.logits is not None:
            return self.logits
        assert self.hidden is not None
        assert self.weight is not None
        return F.linear(self.hidden, self.weight, self.bias)

    def costs(
        self, labels: Tensor, kind: captions.TokenLoss, form: Implementation, chunk: int | None
    ) -> Tensor:
        """Sum what the tokens cost."""
        if self.logits is not None:
            logits = self.logits
            if streams_tokens(form, logits.numel(), logits.device):
                return captions.sum_logits(logits, labels, kind, chunk)
            return captions.token_losses(logits.flatten(0, 1), labels.flatten(), kind)
        assert self.hidden is not None
        assert self.weight is not None
        given = self.hidden.flatten(0, 1), self.weight, self.bias, labels.flatten(), kind
        if form == "dense":
            return captions.linear_token_losses(*given)
        return captions.sum_linear(*given, chunk or captions.CHUNK)


def _near(name: str, tensor: Tensor, features: Tensor) -> Tensor:
    if tensor.device != features.device:
        raise ValueError(
            f"{name}: expected the device of image_features, {features.device}, got {tensor.device}"
        )
    return tensor


def _at_least_one(tokens: int | Tensor) -> int | Tensor:
    return tokens.clamp(min=1) if isinstance(tokens, Tensor) else max(tokens, 1)
