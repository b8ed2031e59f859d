"""The forms that losses are known to have: what the names of their parameters mean. Imports no torch."""

import ast
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from .forms import NAMES, OPTIONS, SOFT, input_of
from .keywords import NEEDED, keywords_read

ROLES: dict[str, str] = {
    "image": """image_features image_embeds image_embeddings image_embedding image_embed image_emb
        image_feats image_feat image_latents images image img img_emb img_embs img_embed
        img_embeds img_features img_feats img_feat img_embeddings vision_features vision_embeds
        vision_embeddings vision_feats visual_features visual_embeds visual_emb visual
        video_features video_embeds video_embd video_emb video v_features v_emb zimg z_img
        z_image image_z i_e im im_emb a_features audio_features audio_embeds x1 z_a feat_i
        feats_i embeddings_a emb_a modality_1 view1""",
    "text": """text_features text_embeds text_embeddings text_embedding text_embed text_emb text_feats
        text_feat text_latents texts text txt txt_emb txt_embs txt_embed txt_embeds txt_features
        txt_feats txt_feat txt_embeddings language_features language_embeds lang_features
        caption_features caption_embeds caption_emb captions caption ztxt z_txt z_text text_z
        t_e cap cap_emb t_features t_emb x2 z_b feat_t feats_t embeddings_b emb_b modality_2
        view2""",
    "first": """q_vectors query queries q query_embeds query_embeddings query_emb query_features
        query_reps query_rep q_reps q_emb q_embs anchor anchors anchor_embeddings z_i zi z1 z_1
        zis h_i h1 hidden1 x1 x_i out_1 out1 first view1 view_1 emb_i emb1 emb_a p1 z_a feat1
        feats1 features1 features_1 rep1 reps1 proj_1 embeddings_a image_features image_embeds
        img_emb source src left a""",
    "second": """ctx_vectors ctx context contexts p_vectors key keys k key_embeds key_embeddings k_emb
        positive positives pos positive_key positive_embeddings passage passages p_reps
        passage_reps passage_embeds p_emb doc docs document documents doc_embeddings doc_embeds
        candidates z_j zj z2 z_2 zjs h_j h2 hidden2 x2 x_j out_2 out2 second view2 view_2 emb_j
        emb2 emb_b p2 z_b feat2 feats2 features2 features_2 rep2 reps2 proj_2 embeddings_b
        text_features text_embeds txt_emb target_embeddings tgt right b targets_emb""",
    "both": """z features feats x embeddings embeds emb representations reps projections proj h out
        outputs hidden features_list zs""",
    "scale": """logit_scale scale logit_scale_exp exp_logit_scale s scale_factor inverse_temperature
        inv_temp beta""",
    "temperature": "temperature temp tau t temperature_param temp_param",
    "log_scale": "log_logit_scale log_scale logit_scale_log log_inv_temperature",
    "log_temperature": "log_temperature log_temp log_tau log_t",
    "bias": "logit_bias bias b",
    "per_image": "logits_per_image image_logits logits_image i2t sim_i2t logits_i2t logit_per_image",
    "per_text": """logits_per_text text_logits logits_text t2i sim_t2i logits_t2i similarity logit_per_text
        per_text""",
    "similarity": """logits logit sim sims scores score similarities similarity_matrix sim_matrix sim_mat
        simi scores_matrix logits_matrix output outputs pred preds prediction predictions input
        inp""",
    "labels": """positive_idx positive_indices pos_idx labels label target targets y gt ground_truth
        indexes index ids idx""",
    "hidden": """hidden hidden_states hidden_state hiddens h last_hidden_state input inputs features feats
        embeddings embeds e x""",
    "weight": """weight weights lm_head_weight lin_weight linear_weight head_weight vocab_weight
        vocabulary_weight output_weight classifier_weight embedding_weight lm_head classifier head w c""",
    "classes": "vocab_size num_classes n_classes num_items",
    "ignored": "ignore_index ignore_idx ignored_index pad_id pad_token_id padding_idx",
    "rows": "batch_size bs batchsize n_views_batch batch local_batch_size",
}  # fmt: skip
"""By what a parameter is: its names in use, in lower case without leading underscores."""
MEANT: dict[str, tuple[str, ...]] = {role: tuple(names.split()) for role, names in ROLES.items()}

PAIR: dict[str, tuple[str, ...]] = {
    "image": ("image",),
    "text": ("text",),
    "scale": ("scale", "log_scale"),
    "temperature": ("temperature", "log_temperature", "scale", "log_scale"),
    "log_scale": ("log_scale",),
    "log_temperature": ("log_temperature", "log_scale"),
    "bias": ("bias",),
    "per_image": ("{scaled}image @ text.T{biased}",),
    "per_text": ("{scaled}text @ image.T{biased}",),
    "similarity": ("{scaled}image @ text.T{biased}",),
    "labels": ("labels", "torch.eye(len(image), dtype=image.dtype)"),
}
TEACHER = {
    f"dist_{role}": tuple(f"dist_{one}" for one in PAIR[role]) for role in ("image", "text", "scale", "bias")
}
VIEWS: dict[str, tuple[str, ...]] = {
    "first": ("first",),
    "second": ("second",),
    "scale": ("scale", "torch.tensor(scale)"),
    "temperature": ("temperature", "torch.tensor(temperature)"),
    "log_scale": ("log_scale",),
    "log_temperature": ("log_temperature",),
    "per_image": ("first @ second.T{heated}",),
    "per_text": ("second @ first.T{heated}", "first @ second.T{heated}"),
    "similarity": ("first @ second.T{heated}",),
    "labels": ("labels",),
}
BOTH = VIEWS | {
    "both": (
        "torch.cat([first, second])",
        "torch.stack([first, second], 1).flatten(0, 1)",
        "torch.stack([first, second], 1)",
    ),
    "labels": ("labels", "torch.cat([labels, labels])", "labels.repeat_interleave(2)"),
    "rows": ("len(first)",),
}
MEANINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "clip": PAIR,
    "siglip": PAIR,
    "coca": PAIR | {"similarity": ("logits",), "labels": ("labels",), "ignored": ("pad_id",)},
    "distill": PAIR | TEACHER,
    "infonce": VIEWS,
    "ntxent": BOTH,
    "cross_entropy": {
        "similarity": ("logits",),
        "labels": ("labels",),
        "classes": ("logits.shape[-1]",),
        "ignored": ("ignore_index",),
    },
    "linear_cross_entropy": {
        "hidden": ("hidden", "hidden[None]"),
        "weight": ("weight", "weight.T"),
        "labels": ("labels", "labels[None]"),
        "bias": ("bias",),
        "ignored": ("ignore_index",),
    },
}
"""By contract: what each role may be given, in the order in which it is tried."""
TENSORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "clip": (("image", "text"), ("image", "text", "scale"), ("similarity",), ("per_image", "per_text")),
    "siglip": (
        ("image", "text"),
        ("image", "text", "scale", "bias"),
        ("similarity",),
        ("per_image", "per_text"),
    ),
    "coca": (("image", "text", "similarity", "labels"), ("image", "text", "similarity", "labels", "scale")),
    "distill": (("image", "text", "scale", "dist_image", "dist_text", "dist_scale"),),
    "infonce": (
        ("first", "second"),
        ("first", "second", "temperature"),
        ("similarity",),
        ("similarity", "labels"),
    ),
    "ntxent": (("first", "second"), ("first", "second", "temperature"), ("both",), ("both", "labels")),
    "cross_entropy": (("similarity", "labels"),),
    "linear_cross_entropy": (
        ("hidden", "weight", "labels"),
        ("hidden", "weight", "labels", "bias"),
        ("weight", "hidden", "labels"),
        ("hidden", "labels", "weight"),
    ),
}
"""By contract: what the parameters of a target are whose names say nothing, in order."""
HOLDERS = {
    "scale": ("log_scale", "scale", "softplus_scale"),
    "temperature": ("temperature", "log_temperature", "scale", "log_scale", *SOFT),
    "log_scale": ("log_scale", "log_temperature"),
    "log_temperature": ("log_temperature", "log_scale"),
    "bias": ("bias",),
}
"""By the role of a module's parameter: what it may hold, in the order in which it is tried."""
PRIMES = {"t_prime": "log_scale", "t": "log_scale", "b_prime": "bias"}
ASKS = ("return_loss", "compute_loss", "calc_loss", "with_loss")
"""Flags without which a model returns its outputs, and no loss."""
MOST = 64
"""Forms that are tried of one target."""


def role_of(name: str, among: Sequence[str]) -> str:
    """Return what a parameter is by its name; empty if that says nothing."""
    plain = name.lower().strip("_")
    for role in among:
        prefix = "dist_" if role.startswith("dist_") else ""
        if prefix and not plain.startswith(("dist_", "teacher_", "t_")):
            continue
        if not prefix and plain.startswith(("dist_", "teacher_")):
            continue
        if plain.removeprefix("dist_").removeprefix("teacher_") in MEANT[role.removeprefix(prefix)]:
            return role
    return ""


@dataclass(frozen=True)
class Taken:
    """A parameter of a function."""

    name: str
    required: bool
    by_name: bool


def parameters_of(function: Callable[..., Any]) -> list[Taken]:
    """Return the parameters of a function: in the place of **kwargs, what it reads of them."""
    found = []
    for name, one in inspect.signature(function).parameters.items():
        if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD):
            continue
        found.append(Taken(name, one.default is one.empty, one.kind is not one.POSITIONAL_ONLY))
    read = keywords_read(function) or {}
    has = [one.name for one in found]
    return found + [Taken(key, default == NEEDED, True) for key, default in read.items() if key not in has]


def is_called_itself(target: Any) -> bool:
    """Whether a target is a function that takes tensors, and constructs nothing."""
    if inspect.isclass(target):
        return False
    taken = parameters_of(target)
    named = {name: [role_of(one.name, tuple(roles)) for one in taken] for name, roles in MEANINGS.items()}
    return any(one.required for one in taken) or any(_has_tensors(named[name], name) for name in named)


def _has_tensors(roles: Iterable[str], contract: str) -> bool:
    """Whether some roles are those of all tensors that a contract's losses take, two or more."""
    found = set(roles)
    return any(len(order) > 1 and set(order) <= found for order in TENSORS[contract])


def calls(
    function: Callable[..., Any],
    contract: str,
    given: Sequence[str] = (),
    read: Mapping[str, Sequence[str]] = MappingProxyType({}),
    stated: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """Yield the calls that the parameters of a function allow, as expressions.

    Args:
        function: what is called.
        contract: whose names the expressions hold.
        given: which names the target has elsewhere: a temperature in its constructor.
        read: by argument, which keys the function reads of it.
        stated: by parameter, which name of the contract it is given.
    """
    parameters, roles = parameters_of(function), MEANINGS[contract]
    required = [one for one in parameters if one.required]
    named = {
        one.name: stated.get(one.name)
        or role_of(one.name, tuple(roles))
        or (one.name if one.name in OPTIONS.get(contract, ()) else "")
        for one in parameters
    }
    named |= _from_zero([one.name for one in required], roles)
    unnamed = [one for one in required if not named[one.name]]
    assignments = [named]
    # where all have defaults, as None, their names say which of them are the loss's tensors
    if unnamed or not (required or _has_tensors(named.values(), contract)):
        assignments = []
        for order in TENSORS[contract]:
            free = [role for role in order if role not in named.values()]
            if len(unnamed) == len(free) and required:
                assignments.append(named | {one.name: role for one, role in zip(unnamed, free, strict=False)})
    # names of a letter or two say little
    weak = [one for one in required if len(one.name.strip("_")) <= 2 or not named[one.name]]
    for order in TENSORS[contract]:
        if any(named[one.name] for one in weak) and len(order) == len(weak):
            assignments.append(named | {one.name: role for one, role in zip(weak, order, strict=True)})
    # two tensors may bear any names: those of labels, or of documents
    if len(required) == 2:
        for order in TENSORS[contract]:
            if len(order) == 2:
                assignments.append(named | {one.name: r for one, r in zip(required, order, strict=True)})
    for assigned in assignments:
        yield from _expressions(parameters, assigned, contract, given)
    for batch, keys in read.items():
        others = [one for one in parameters if one.name != batch]
        parts = {key: role_of(key, tuple(roles)) for key in keys if key not in named}
        if _has_tensors({*parts.values(), *(named[one.name] for one in others)}, contract):
            taken = [Taken(key, True, True) for key in parts if parts[key]]
            first = parameters[0].name == batch
            batched = (batch if not first else "", [one.name for one in taken])
            yield from _expressions([*taken, *others], named | parts, contract, given, batched)


def _from_zero(names: Sequence[str], roles: Mapping[str, Any]) -> dict[str, str]:
    """Return what two names mean that end in 0 and in 1: by itself, x1 is the first."""
    for stem in (name[:-1] for name in names if name.endswith("0")):
        for order in (("image", "text"), ("first", "second")):
            if f"{stem}1" in names and f"{stem}2" not in names and set(order) <= set(roles):
                return dict(zip((f"{stem}0", f"{stem}1"), order, strict=True))
    return {}


def _expressions(
    parameters: Sequence[Taken],
    assigned: dict[str, str],
    contract: str,
    given: Sequence[str],
    batched: tuple[str, Sequence[str]] = ("", ()),
) -> Iterator[str]:
    roles = MEANINGS[contract]
    taken = [one for one in parameters if assigned.get(one.name)]
    if any(one.required and not assigned.get(one.name) for one in parameters):
        return
    has = {assigned[one.name] for one in taken}
    scaled = bool(has & {"scale", "temperature", "log_scale", "log_temperature"}) or any(
        "scale" in name or "temperature" in name for name in given
    )
    known = NAMES[contract]
    scales = [""] if scaled or "scale" not in known else ["scale * ", ""]
    heats = [""] if scaled or "temperature" not in known else [" / temperature", ""]
    biases = ["", " + bias"] if contract == "siglip" and "bias" not in (has | set(given)) else [""]
    choices = [
        # labels that it makes itself may be of a kind that is not known: "" leaves them to it
        (*roles.get(role, (role,)), *[""] * (role == "labels" and not one.required))
        for one, role in ((one, assigned[one.name]) for one in taken)
    ]
    seen = set()
    for bias, heat, (place, scale) in itertools.product(biases, heats, enumerate(scales)):
        if contract in ("infonce", "ntxent") and place:
            continue
        for chosen in itertools.product(*choices):
            values = [one.format(scaled=scale, biased=bias, heated=heat) for one in chosen]
            parts: list[str] = []
            inner: list[str] = []
            for one, value in ((one, value) for one, value in zip(taken, values, strict=True) if value):
                into = inner if one.name in batched[1] else parts
                into.append(f"{one.name}={value}" if one.by_name else value)
            if inner and batched[0]:
                parts.append(f"{batched[0]}=dict({', '.join(inner)})")
            elif inner:
                parts.insert(0, f"dict({', '.join(inner)})")
            parts += [f"{one.name}=True" for one in parameters if one.name in ASKS and one not in taken]
            expression = f"target({', '.join(parts)})"
            if expression not in seen:
                seen.add(expression)
                yield expression


def keys_read(function: Callable[..., Any]) -> dict[str, list[str]]:
    """Return by argument that a function cannot do without which keys it reads of it, by its source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return {}
    names = {one.name for one in parameters_of(function) if one.required}
    found: dict[str, list[str]] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), slice=ast.Constant(value=str(key))) if name in names:
                found.setdefault(name, []).append(key)
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="get"),
                args=[ast.Constant(value=str(key)), *_],
            ) if name in names:
                found.setdefault(name, []).append(key)
    return {name: [key for key in dict.fromkeys(keys) if key.isidentifier()] for name, keys in found.items()}


def ignores_by_another_name(target: Callable[..., Any], passed: Iterable[str]) -> bool:
    """Whether a constructor takes the label to ignore by a name that the contract does not pass."""
    if not {"ignore_index", "pad_id"} & set(passed):
        return False
    return any(role_of(one.name, ("ignored",)) and one.name not in passed for one in parameters_of(target))


def constructions(
    target: Callable[..., Any], contract: str, passed: Sequence[str]
) -> Iterator[tuple[tuple[tuple[str, str], ...], str]]:
    """Yield what a constructor may be given besides what the contract passes, and its argument for rows."""
    known, ignored = NAMES[contract], MEANINGS[contract].get("ignored", ())
    choices: list[list[tuple[str, str] | None]] = []
    rows = ""
    for one in parameters_of(target):
        if one.name in passed:
            continue
        role = role_of(one.name, ("scale", "temperature", "log_scale", "log_temperature", "rows", "ignored"))
        if role == "rows" and one.required:
            rows = one.name
        elif role == "ignored" and ignored:
            choices.append([(one.name, name) for name in ignored])
        elif role in HOLDERS and any(name in known for name in HOLDERS[role]):
            names = [name for name in MEANINGS[contract].get(role, ()) if name in known]
            options: list[tuple[str, str] | None] = [(one.name, name) for name in names]
            choices.append(options if one.required else [*options, None])
    for chosen in itertools.product(*choices):
        yield tuple(one for one in chosen if one), rows


def holdings(
    scalars: Sequence[str], contract: str, taken: Sequence[str]
) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield what the scalar parameters of a module may hold by their names, of what a call does not give.

    Args:
        scalars: the paths of its parameters of one element.
        contract: whose names are held.
        taken: the names that are given otherwise.
    """
    choices: dict[str, list[str]] = {}
    for path in scalars:
        role = _held_role(path)
        if not role and len(scalars) == 1:
            role = "temperature"
        if names := _holdable(HOLDERS.get(role, ()), contract, taken):
            choices[path] = names
    yield from _combined(choices, contract)


def guesses(
    scalars: Sequence[str], contract: str, taken: Sequence[str]
) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield the same where a name that says little may stand for anything, and an unknown one for nothing."""
    # a softmax is the same whatever is added to its logits
    anything = (*HOLDERS["log_scale"], *HOLDERS["temperature"], *["bias"] * (contract == "siglip"))
    choices: dict[str, list[str]] = {}
    for path in scalars:
        last, role = path.rpartition(".")[2].strip("_"), _held_role(path)
        says_little = not role or len(last) <= 2 or last == "beta"
        possible = dict.fromkeys(anything if says_little else HOLDERS[role])
        if names := _holdable(possible, contract, taken):
            choices[path] = names
    unknown = [path for path in choices if not _held_role(path)]
    for count in range(len(unknown) + 1):
        for without in itertools.combinations(unknown, count):
            kept = {path: names for path, names in choices.items() if path not in without}
            yield from (held for held in _combined(kept, contract) if held)


def _held_role(path: str) -> str:
    """Return what a parameter holds by its name; empty if that says nothing."""
    last = path.rpartition(".")[2]
    return PRIMES.get(last) or role_of(last, tuple(HOLDERS))


def _holdable(names: Iterable[str], contract: str, taken: Sequence[str]) -> list[str]:
    """Return those of some names whose input a contract has and a call does not give."""
    given = {"", *(input_of(name, contract) for name in taken)}
    return [name for name in names if input_of(name, contract) not in given]


def _combined(choices: Mapping[str, Sequence[str]], contract: str) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield a name for each parameter, no two of one input."""
    for chosen in itertools.product(*choices.values()):
        held = [input_of(name, contract) for name in chosen]
        if len(set(held)) == len(held):
            yield tuple(zip(choices, chosen, strict=True))
