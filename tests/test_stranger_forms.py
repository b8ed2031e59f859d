"""Forms that were once refused or misread: found by themselves, and the verdict is true."""

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from verified_losses.properties.ask.plans import Verifier
from verified_losses.properties.forms import read_parameter
from verified_losses.properties.laws import TRAINING
from verified_losses.properties.laws.hygiene import RAISING_AGAIN
from verified_losses.properties.laws.large import TOO_MUCH
from verified_losses.properties.names import FORMULAS
from verified_losses.properties.show.forms import described
from verified_losses.properties.standalone import loading
from verified_losses.properties.verify import limits
from verified_losses.properties.verify.arguments import Unusable, ask
from verified_losses.properties.verify.limits import KINKS
from verified_losses.properties.verify.plan import inspection, plan

pytestmark = pytest.mark.usefixtures("in_this_process")

TERMS, GRADIENTS, COTANGENTS = (
    "terms equal the oracle",
    "gradients equal the oracle",
    "cotangents pass through",
)


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what was stubbed."""
    before = set(sys.modules)
    monkeypatch.setattr(loading.STUBS, "names", [])
    yield
    for name in sys.modules.keys() - before:
        del sys.modules[name]


def _verified(
    name: str, contract: str, world: str, laws: tuple[str, ...], cases: int, file: str = "forms"
) -> tuple[Any, set[str]]:
    held_to = FORMULAS.get(contract, contract)
    subject, matches = inspection(ask(f"tests.strangers.{file}:{name}", held_to)[1], held_to)
    assert matches, name
    planned = [one for one in plan({"it": (held_to, subject)}, world, cases) if one.law.name in laws]
    assert planned
    said = described(held_to, subject)
    return said, {one.law for one in Verifier(cases).verify_all(planned) if one.verdict == "falsified"}


@pytest.mark.parametrize(
    ("name", "contract", "said"),
    [
        ("Configured.from_config", "clip",
         'calls Configured.from_config(image_embeds=image, text_embeds=text)["loss"]'),
        ("all_default", "clip",
         "calls all_default(logits_per_image=scale * image @ text.T, "
         "logits_per_text=scale * text @ image.T)"),
        ("labels_last", "multi_positive",
         "calls labels_last(image_feats=image, text_feats=text, tau=temperature, targets=labels)"),
        ("Queue", "held_queue",
         "calls in_turn(Queue(K=queue_size, dim=width, T=temperature), queue, q=query, k=key)"),
        ("NewestFirst", "held_queue",
         "calls in_turn(NewestFirst(K=queue_size, dim=width, T=temperature), queue.flip(1), q=query, "
         "k=key)"),
        ("Captions", "coca", "raises for other labels of padding than 0, 1, -100: no case has them"),
        ("HeadInChunks", "linear_cross_entropy",
         "calls HeadInChunks(hidden_states=hidden, lm_head_weight=weight, labels=labels)"),
        ("scripted", "ntxent", "calls scripted(z1=first, z2=second, temperature=temperature)"),
        ("Soft", "clip", "raw_tau holds what softplus makes a temperature"),
        ("SoftScale", "clip", "raw_tau holds what softplus makes a scale"),
        ("Trainer.compute_loss", "infonce", "normalises rows"),
        ("ByKeyword", "infonce", "left at their defaults: reduction='mean'"),
        ("of_batch", "clip",
         'calls of_batch(dict(image_features=image, text_features=text), logit_scale=scale)["loss"]'),
        ("Regression", "tests.strangers.forms:byol",
         "calls Regression(preds=online, targets=target_)"),
        ("CalledItself", "softened", "calls CalledItself(T=temperature)(y_s=student, y_t=teacher)"),
        ("Prefixes", "matryoshka",
         "calls Prefixes(temperature=temperature, matryoshka_dims=dims)(anchors=query, positives=key)"),
        ("ClampedInPlace", "clip", "logit_scale holds log scale"),
        ("TimesT", "clip", "t holds scale"),
        ("DividesByT", "infonce", "t holds temperature"),
        ("TimesTPlusB", "siglip", "t holds scale"),
        ("AlphaBeta", "siglip", "beta holds bias"),
        ("signs_by_default", "siglip", "left at their defaults: targets=None"),
        ("parts_and_total", "clip",
         'calls parts_and_total(img=image, txt=text, logit_scale=scale)["total_loss"]'),
        ("scale_beside", "clip", 'calls scale_beside(img=image, txt=text, logit_scale=scale)["nll"]'),
        ("lazy", "clip", "calls lazy(img=image, txt=text, logit_scale=scale).loss"),
        ("quoted", "clip", r'calls quoted(img=image, txt=text, logit_scale=scale)["train \"loss\""]'),
        ("numbered", "clip", "calls numbered(img=image, txt=text, logit_scale=scale)[0]"),
    ],
)  # fmt: skip
def test_the_form_is_found_and_the_loss_holds(name: str, contract: str, said: str) -> None:
    lines, falsified = _verified(name, contract, "1", (TERMS, GRADIENTS), 8)
    assert said in lines
    assert not falsified


@pytest.mark.parametrize(
    ("name", "contract", "world", "said"),
    [
        ("Lit", "infonce", "sim:2", "left at their defaults: lr=0.001"),
        ("Dual", "clip", "1",
         'calls Dual(text_embeds=text, image_embeds=image, return_loss=True)["loss"]'),
    ],
)  # fmt: skip
def test_what_is_not_installed_has_stand_ins(
    name: str, contract: str, world: str, said: str, unloaded: None
) -> None:
    lines, falsified = _verified(name, contract, world, (TERMS, GRADIENTS), 8, "absent")
    assert any(said in line for line in lines)
    assert not falsified


def test_which_of_several_numbers_is_the_loss_is_asked_where_no_name_says_it() -> None:
    with pytest.raises(Unusable, match="state which is the loss, by --call") as refused:
        inspection(ask("tests.strangers.forms:parts_first", "clip")[1], "clip")
    right, wrong = (f"target(img=image, txt=text, logit_scale=scale)[{place}]" for place in (2, 0))
    assert f"--call '{right}' or --call '{wrong}'" in refused.value.problem
    for call, is_right in ((right, True), (wrong, False)):
        asked = ask("tests.strangers.forms:parts_first", "clip", call=call)[1]
        assert inspection(asked, "clip")[1] == is_right


def test_a_refusal_says_what_the_loss_raised() -> None:
    with pytest.raises(Unusable, match="constructed: ValueError: Default process group") as refused:
        inspection(ask("tests.strangers.forms:Unguarded", "clip")[1], "clip")
    assert "guard it by torch.distributed.is_initialized()" in refused.value.problem
    with pytest.raises(Unusable, match=r"cannot be called with .*: ValueError: three dimensions"):
        inspection(ask("tests.strangers.forms:of_views", FORMULAS["supcon"])[1], FORMULAS["supcon"])


def test_a_default_of_several_lines_is_told_in_one() -> None:
    subject, matches = inspection(ask("tests.strangers.forms:BeginsAt", "infonce")[1], "infonce")
    assert matches
    assert dict(subject.defaults)["init"] == "Parameter containing: tensor(0.0700, requires_grad=True)"


def test_a_wrong_loss_that_returns_an_object_is_read_as_a_right_one() -> None:
    contract = "infonce"
    subject, matches = inspection(ask("tests.strangers.forms:returns_an_object", contract)[1], contract)
    assert not matches
    assert subject.form.call == "target(q=first, k=second).loss"
    planned = [one for one in plan({"it": (contract, subject)}, "1", 8) if one.law.name == TERMS]
    (finding,) = Verifier(8).verify_all(planned)
    assert "expected a torch.Tensor" not in finding.reason
    assert finding.verdict == "falsified"


def _found(name: str, contract: str, law: str) -> Any:
    contract = f"tests.strangers.forms:{contract}"
    subject, matches = inspection(ask(f"tests.strangers.forms:{name}", contract)[1], contract)
    assert matches
    planned = [one for one in plan({"it": (contract, subject)}, "1", 8) if one.law.name == law]
    (finding,) = Verifier(8).verify_all(planned)
    return finding


@pytest.mark.parametrize(
    ("name", "contract", "law"),
    [
        ("ArcFace", "arcface", "leaves no trace"),  # its centres begin at random
        ("Regression", "byol", "twice differentiable"),  # a derivative that is 0, but for the complex step
    ],
)
def test_what_was_accused_holds(name: str, contract: str, law: str) -> None:
    assert _found(name, contract, law).verdict == "holds"


def test_a_backward_that_torch_compile_runs_once_is_a_limit() -> None:
    finding = _found("compiled_covariance", "covariance", "deterministic")
    assert (finding.verdict, finding.limit) == ("limit", RAISING_AGAIN)


def test_own_rows_that_carry_the_gradient_of_all_ranks_are_held_to_that() -> None:
    _, falsified = _verified("OwnRowsCarryAll", "infonce", "sim:2", (GRADIENTS, COTANGENTS), 8)
    assert not falsified


@pytest.mark.parametrize(
    ("name", "contract", "law"),
    [
        ("mean_of_chunks", "linear_cross_entropy", TERMS),
        ("stale_maximum", "clip", "large batches equal the oracle"),
        ("Blocks", "infonce", "large batches equal the oracle"),
        ("HardScale", "clip", GRADIENTS),
        ("ForgetsB", "siglip", TERMS),
        ("DropsNewest", "held_queue", TERMS),
        ("ForgetsExponential", "siglip", TERMS),
    ],
)
def test_what_is_wrong_is_caught(name: str, contract: str, law: str) -> None:
    contract = FORMULAS.get(contract, contract)
    subject, _ = inspection(ask(f"tests.strangers.forms:{name}", contract)[1], contract)
    planned = [one for one in plan({"it": (contract, subject)}, "1", 25) if one.law.name == law]
    assert [one.verdict for one in Verifier(25).verify_all(planned)] == ["falsified"]


@pytest.mark.parametrize(("name", "falsified"), [("ArcFace", set[str]()), ("CosFace", {TERMS, GRADIENTS})])
def test_a_module_may_own_what_a_formula_learns(name: str, falsified: set[str]) -> None:
    contract = "tests.strangers.forms:arcface"
    subject, matches = inspection(ask(f"tests.strangers.forms:{name}", contract)[1], contract)
    assert matches == (not falsified)
    assert "weight holds weight" in described(contract, subject)
    planned = [one for one in plan({"it": (contract, subject)}, "1", 8) if one.law.name in (TERMS, GRADIENTS)]
    assert {one.law for one in Verifier(8).verify_all(planned) if one.verdict == "falsified"} == falsified


def _of(name: str, contract: str, law: str, cases: int) -> Any:
    subject, matches = inspection(ask(f"tests.strangers.forms:{name}", contract)[1], contract)
    assert matches
    planned = [one for one in plan({"it": (contract, subject)}, "1", cases) if one.law.name == law]
    (finding,) = Verifier(cases).verify_all(planned)
    return finding


@pytest.mark.parametrize("law", [GRADIENTS, COTANGENTS])
def test_a_gradient_that_is_wrong_where_a_logit_is_zero_alone_is_a_limit(law: str) -> None:
    finding = _of("stable_sigmoid", "siglip", law, 25)
    assert (finding.verdict, finding.limit) == ("limit", KINKS), finding.reason


def test_a_gradient_that_is_wrong_for_a_bias_of_zero_is_no_kink() -> None:
    finding = _of("bias_unless_zero", "siglip", GRADIENTS, 25)
    assert finding.verdict == "falsified"
    assert "gradient of logit_bias" in finding.reason


def test_a_parameter_that_is_clamped_in_its_place_keeps_its_gradient() -> None:
    assert _of("ClampedInPlace", "clip", GRADIENTS, 60).verdict == "holds"
    assert _of("ClampedInPlace", "clip", "outputs well formed", 60).verdict == "holds"


@pytest.mark.parametrize("law", [TERMS, GRADIENTS, "inputs unchanged"])
def test_a_temperature_that_is_clamped_in_its_place_is_right(law: str) -> None:
    finding = _of("ClampedTemperature", "clip", law, 60)
    assert finding.verdict == "holds", finding.reason


def test_a_parameter_that_each_call_alters_is_caught() -> None:
    assert _of("ShrinksTemperature", "clip", "inputs unchanged", 8).verdict == "falsified"


def test_stale_targets_are_not_hidden_by_what_fails_after_inference_mode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "EVEN_SECONDS", 300.0)  # a busy machine draws as many cases
    finding = _of("StaleTargets", "ntxent", "used equals fresh", 25)
    assert finding.verdict == "falsified"
    assert {step.mode for step in finding.smallest.steps} == {"train"}
    assert finding.concern == TRAINING


def test_a_loss_of_two_views_may_take_too_much_for_so_many_rows() -> None:
    subject, _ = inspection(ask("tests.strangers.forms:one_by_one", "infonce")[1], "infonce")
    planned = [one for one in plan({"it": ("infonce", subject)}, "1", 25) if one.law.name.startswith("large")]
    (finding,) = Verifier(25).verify_all(planned)
    assert (finding.verdict, finding.reason) == ("skipped", TOO_MUCH)


def test_a_parameter_may_be_stated_as_what_softplus_makes_a_scale() -> None:
    assert read_parameter("temperature=softplus(raw)", "clip") == ("raw", "softplus_temperature")
    assert read_parameter("logit_scale=1 / softplus(a.raw)", "infonce") == ("a.raw", "softplus_temperature")
    assert read_parameter("logit_scale=softplus(raw)", "siglip") == ("raw", "softplus_scale")
    assert read_parameter("dist_temperature=softplus(t)", "distill") == ("t", "dist_softplus_temperature")
