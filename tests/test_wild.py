"""Losses as public repositories write them: the form is found by itself, and the verdict is true."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from hypothesis import Phase

from verified_losses.properties import adapter
from verified_losses.properties.ask.inspect import inspected
from verified_losses.properties.forms import NAMES, check_call, read_parameter
from verified_losses.properties.show import terminal
from verified_losses.properties.show.counterexample import write
from verified_losses.properties.show.forms import described
from verified_losses.properties.subjects import Subject
from verified_losses.properties.verify import certifier as certifier_module
from verified_losses.properties.verify.arguments import Unusable, ask
from verified_losses.properties.verify.certifier import Certifier, Finding, checks, verify
from verified_losses.properties.verify.limits import OTHER_DTYPES, RAISING_INFERENCE
from verified_losses.properties.verify.plan import inspection
from verified_losses.properties.worlds.specs import parse

from . import wild
from .defects.report import reason_if_falsified

pytestmark = pytest.mark.usefixtures("in_this_process")

LAWS = ("terms equal the oracle", "gradients equal the oracle", "eval equals train")
CASES = 8


class Form(NamedTuple):
    """A loss, and what is found out about it."""

    target: Callable[..., object]
    contract: str
    said: tuple[str, ...]
    """Lines of what is printed of it."""
    holds: bool = True


RAW, NORMALISES = "takes rows as they are", "normalises rows"
TOTAL = "returns the sum of contrastive_loss and {}: each alone is not verified"
FORMS = [
    Form(wild.similarity_alone, "clip", ("calls similarity_alone(similarity=scale * text @ image.T)", RAW)),
    Form(wild.two_logits, "clip", ("calls two_logits(logits_per_image=scale * image @ text.T, "
                                   "logits_per_text=scale * text @ image.T)",)),
    Form(wild.temperature_argument, "clip", ("calls temperature_argument(image_embeds=image, "
                                             "text_embeds=text, temperature=temperature)", RAW)),
    Form(wild.DictOfOutputs, "clip", ("calls DictOfOutputs(dict(image_embed=image, text_embed=text, "
                                      'logit_scale=scale))["loss"]', NORMALISES)),
    Form(wild.LossAndAccuracy, "clip", ("calls LossAndAccuracy(image_features=image, text_features=text, "
                                        "logit_scale=scale)[0]", "left at their defaults: smoothing=0.0")),
    Form(wild.TemperatureInConstructor, "clip", ("calls TemperatureInConstructor(temperature=temperature)"
                                                 "(x=image, y=text)", NORMALISES)),
    Form(wild.LogScale, "clip", ("logit_scale holds log scale", RAW,
                                 "left at their defaults: init_temperature=0.07")),
    Form(wild.ClampedLogScale, "clip", ("log_scale holds log scale", NORMALISES)),
    Form(wild.LearnedTemperature, "clip", ("temp holds temperature", RAW)),
    Form(wild.Prime, "siglip", ("t_prime holds log scale", "b holds bias", NORMALISES)),
    Form(wild.object_with_loss, "clip", ("calls object_with_loss(image_embeds=image, text_embeds=text, "
                                         "logit_scale=scale).loss",)),
    Form(wild.DotProducts, "infonce", (RAW, "takes no scale: it is 1 in every case")),
    Form(wild.BiEncoder, "infonce", (RAW,)),
    Form(wild.scores_and_labels, "infonce", ("calls scores_and_labels(scores=first @ second.T / temperature, "
                                             "labels=labels)", RAW)),
    Form(wild.stacked_views, "ntxent", ("calls stacked_views(z=torch.cat([first, second]), "
                                        "temperature=temperature)", NORMALISES)),
    Form(wild.interleaved_views, "ntxent", ("calls interleaved_views(features=torch.stack([first, second], 1)"
                                            ".flatten(0, 1), t=temperature)",)),
    Form(wild.BatchInConstructor, "ntxent", ("calls BatchInConstructor(batch_size=rows)"
                                             "(z_i=first, z_j=second)",)),
    Form(wild.SupCon, "ntxent", ("calls SupCon(features=torch.stack([first, second], 1), labels=labels)",)),
    Form(wild.indexed, "ntxent", ("calls indexed(z=torch.cat([first, second]), "
                                  "indexes=torch.cat([labels, labels]), temperature=temperature)",)),
    Form(wild.Smoothing, "cross_entropy", ("left at their defaults: smoothing=0.0",)),
    Form(wild.causal, "cross_entropy", ("calls causal(logits=logits, labels=labels, "
                                        "vocab_size=logits.shape[-1], ignore_index=ignore_index)",)),
    Form(wild.StartsAtTemperature, "clip", ("temperature holds temperature",)),
    Form(wild.Buffered, "ntxent", ("computes in float32: no case is in float64",)),
    Form(wild.upcast, "cross_entropy", ("computes in float32: no case is in float64",)),
    Form(wild.letters, "clip", ("calls letters(v=image, t=text, logit_scale=scale)",)),
    Form(wild.retriever, "infonce", ("calls retriever(q_vectors=first, ctx_vectors=second, "
                                     "positive_idx=labels)", RAW)),
    Form(wild.Padded, "cross_entropy", ("calls Padded(pad_id=ignore_index)(logits=logits, targets=labels)",)),
    Form(wild.Gathered, "infonce", (NORMALISES,)),
    Form(wild.needs_bias, "siglip", (RAW,)),
    Form(wild.times_exp, "siglip", ("calls times_exp(img=image, txt=text, log_temp=log_scale, bias=bias)",)),
    Form(wild.RowsInSingle, "siglip", ("computes in float32: no case is in float64",)),
    Form(wild.captioner, "coca", ("calls captioner(image_embeds=image, text_embeds=text, logits=logits, "
                                  "labels=labels, logit_scale=scale, "
                                  "caption_loss_weight=caption_loss_weight, "
                                  "clip_loss_weight=clip_loss_weight, pad_id=pad_id)",
                                  "left at their defaults: label_smoothing=0.0")),
    Form(wild.captioner_of_objects, "coca", ("calls (lambda out: (out.contrastive_loss, out.caption_loss))("
                                             "captioner_of_objects(image=image, text=text, logits=logits, "
                                             "labels=labels, logit_scale=scale))",)),
    Form(wild.CaptionerOfTotal, "coca", (TOTAL.format("caption_loss"),)),
    Form(wild.distilled, "distill", (TOTAL.format("distill_loss"),)),
    Form(wild.LearnedQueries, "infonce", ("temperature holds temperature", NORMALISES)),
    Form(wild.LearnedViews, "ntxent", ("log_temperature holds log temperature", NORMALISES)),
    Form(wild.ScaledQueries, "infonce", ("logit_scale holds log scale", RAW)),
    Form(wild.captioner_of_fixed_weight, "coca", ("left at their defaults: caption_weight=2.0",),
         holds=False),
    Form(wild.distilled_twice, "distill", (TOTAL.format("distill_loss"),), holds=False),
    Form(wild.DetachesTemperature, "infonce", ("temperature holds temperature",), holds=False),
    Form(wild.EpsilonOfRows, "clip", (NORMALISES,), holds=False),
    Form(wild.DividesByScale, "clip", (RAW,), holds=False),
    Form(wild.dict_of_sums, "clip", (RAW,), holds=False),
    Form(wild.OtherInEvaluation, "clip", (RAW,), holds=False),
    Form(wild.ClampedToNothing, "clip", ("logit_scale holds log scale", NORMALISES), holds=False),
    Form(wild.SupConOfBase, "ntxent", (NORMALISES,), holds=False),
    Form(wild.averages_pairs, "siglip", (RAW,), holds=False),
    Form(wild.Summed, "clip", ("calls Summed(temperature=temperature)(x=image @ text.T)", RAW), holds=False),
    Form(wild.without_maximum, "ntxent", (NORMALISES,), holds=False),
    Form(wild.forgets_exp, "clip", (RAW,), holds=False),
]  # fmt: skip
LOCAL = "does not gather: verified in one process; its negatives are local"


def found(form: Form) -> tuple[Subject, bool]:
    target = f"{form.target.__module__}:{form.target.__qualname__}"
    return inspection(ask(target, form.contract)[1], form.contract)


@pytest.mark.parametrize("form", FORMS, ids=[form.target.__name__ for form in FORMS])
def test_the_form_is_found_and_the_verdict_is_true(form: Form) -> None:
    subject, matches = found(form)
    said = described(form.contract, subject)
    assert set(form.said) <= set(said)
    if form.contract != "cross_entropy":
        assert (LOCAL in said) == (form.target is not wild.Gathered)
    asked = [one for one in checks({"it": (form.contract, subject)}, parse("1")) if one.law.name in LAWS]
    if not form.holds:
        assert any(reason_if_falsified(check, 25, 0) for check in asked)
        return
    assert matches
    for check in asked:
        finding = verify(check, CASES)
        assert finding.verdict != "skipped" or "eval" in finding.reason
        assert finding.verdict != "falsified", f"{finding.reason}\n{finding.counterexample}"


@pytest.fixture
def _as_it_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    """A finding is not made smaller."""
    phases = SimpleNamespace(**{one.name: one for one in Phase} | {"shrink": Phase.generate})
    monkeypatch.setattr(certifier_module, "Phase", phases)


def _certified(
    name: str, contract: str, strict: bool = False, laws: tuple[str, ...] = LAWS[:2]
) -> list[Finding]:
    subject, _ = inspection(ask(f"tests.wild:{name}", contract, strict=strict)[1], contract)
    certifier = Certifier(20)
    asked = checks({"it": (contract, subject)}, parse("1"))
    return [certifier.verify(check) for check in asked if check.law.name in laws]


@pytest.mark.usefixtures("_as_it_is_met")
def test_a_dtype_that_a_loss_refuses_is_a_limit_of_it() -> None:
    first, second = _certified("masks_with_a_huge_number", "ntxent")
    assert (first.verdict, first.limit) == ("limit", "float16")
    assert (second.verdict, second.reason) == ("holds", OTHER_DTYPES.format("float16"))
    assert "float16" not in {case.dtype for case in (*first.cases, *second.cases)}
    (said,) = [line for line in terminal.limits([first], "--") if "does not take float16" in line]
    assert "overflow" in said


@pytest.mark.usefixtures("_as_it_is_met")
def test_that_inference_mode_raises_is_a_limit() -> None:
    laws = ("terms equal the oracle", "inputs unchanged", "used equals fresh", "gradients equal the oracle")
    found = {one.law: one for one in _certified("derives_at_once", "clip", laws=laws)}
    assert [found[law].limit for law in laws] == [RAISING_INFERENCE] * 3 + [""]
    assert found[laws[3]].verdict == "holds"
    (strict, *_) = _certified("derives_at_once", "clip", strict=True)
    assert strict.verdict == "falsified"


@pytest.mark.usefixtures("_as_it_is_met")
def test_a_dtype_in_which_some_calls_raise_is_none() -> None:
    assert [found.verdict for found in _certified("refuses_float16_of_many", "clip")] == ["falsified"] * 2
    (first, _) = _certified("masks_with_a_huge_number", "ntxent", strict=True)
    assert (first.verdict, first.limit) == ("falsified", "")


def test_a_program_calls_a_loss_in_its_form(tmp_path: Path) -> None:
    subject, _ = inspection(ask("tests.wild:dict_of_sums", "clip")[1], "clip")
    (check,) = [
        one for one in checks({"it": ("clip", subject)}, parse("1")) if one.law.name.startswith("terms")
    ]
    file = write(verify(check, CASES), tmp_path)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "NotImplementedError" not in done.stdout + done.stderr
    assert "contrastive_loss\n  expected " in done.stdout, done.stdout + done.stderr


def test_flags_that_a_class_does_not_take_are_found() -> None:
    subject, _ = inspection(ask("tests.wild:LocalRows", "clip")[1], "clip")
    assert dict(subject.options) == {"local_loss": True, "gather_with_grad": True}
    for check in checks({"it": ("clip", replace(subject, even=True))}, parse("sim:2-4")):
        if check.law.name in LAWS:
            assert verify(check, CASES).verdict == "holds"
    subject, _ = inspection(ask("tests.wild:LocalRows", "clip", config=(("local_loss", False),))[1], "clip")
    assert dict(subject.options)["local_loss"] is False


def test_a_form_that_is_stated_is_kept() -> None:
    call = "target(scale * image @ text.T)"
    asked = ask("tests.wild:similarity_alone", "clip", call=call, features="unit")[1]
    subject, matches = inspection(asked, "clip")
    assert (subject.form.call, subject.features, matches) == (call, "unit", True)
    asked = ask("tests.wild:LogScale", "clip", parameters=["temperature=exp(logit_scale)"])[1]
    subject, matches = inspection(asked, "clip")
    assert (subject.held, matches) == ((("logit_scale", "exp_negative"),), False)


def test_an_argument_that_looks_like_a_temperature_is_asked_about() -> None:
    subject, _ = inspection(ask("tests.wild:UnusualName", "infonce")[1], "infonce")
    assert "did you mean --parameter temperature=init_temperature?" in described("infonce", subject)
    asked = ask("tests.wild:UnusualName", "infonce", parameters=["temperature=init_temperature"])[1]
    subject, matches = inspection(asked, "infonce")
    assert (subject.form.arguments, matches) == ((("init_temperature", "temperature"),), True)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("scale *", "expected an expression of target"),
        ("scale * image", "does not call the target"),
        ("target(vision)", "vision in 'target(vision)' is none"),
        ("target(scale, temperature)", "expected one of scale, temperature"),
    ],
)
def test_a_call_that_cannot_be_is_refused(call: str, said: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_call(call, "clip")
    with pytest.raises(Unusable) as refused:
        ask("a:b", "clip", call=call)
    assert refused.value.argument == "call"
    assert said in refused.value.problem


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("logit_scale=exp(t_prime)", ("t_prime", "log_scale")),
        ("temperature=tau", ("tau", "temperature")),
        ("temperature = exp(log_tau)", ("log_tau", "log_temperature")),
        ("logit_scale=1 / head.temp", ("head.temp", "temperature")),
        ("logit_scale=exp(-t)", ("t", "log_temperature")),
        ("logit_bias=b", ("b", "bias")),
    ],
)
def test_parameters_are_read(text: str, held: tuple[str, str]) -> None:
    assert read_parameter(text, "siglip") == held


@pytest.mark.parametrize("text", ["t_prime", "logit_scale=", "logit_scale=2*t", "logit_bias=exp(b)", "x=y"])
def test_parameters_that_read_otherwise_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected scale or temperature"):
        read_parameter(text, "siglip")


def test_a_loss_of_no_known_form_is_refused_with_the_option_that_states_one() -> None:
    with pytest.raises(Unusable, match=r"--call 'target\(image, text, scale\)'"):
        inspection(ask("tests.wild:three_modalities", "clip")[1], "clip")


@pytest.mark.parametrize(
    ("name", "contract", "blanks"),
    [
        ("mixed_with_queue", "clip", [0.0]),
        ("NeedsStep", "clip", [1.0, 0]),
        ("similarity_and_step", "infonce", [0]),
    ],
)
def test_the_adapter_that_is_printed_certifies(
    name: str, contract: str, blanks: list[float], tmp_path: Path
) -> None:
    with pytest.raises(Unusable) as refused:
        inspection(ask(f"tests.wild:{name}", contract)[1], contract)
    said, _, text = refused.value.problem.partition(":\n\n")
    assert said.endswith(f"fill in ..., and run verified-losses certify adapter.py:adapter --as {contract}")
    assert f"from tests.wild import {name}\n" in text
    assert text.count("...") == len(blanks)
    for value in blanks:
        text = text.replace("...", str(value), 1)
    file = tmp_path / "adapter.py"
    file.write_text(text)
    subject, matches = inspection(ask(f"{file}:adapter", contract)[1], contract)
    assert matches
    for check in checks({"it": (contract, subject)}, parse("1")):
        if check.law.name in LAWS[:2]:
            assert verify(check, 3).verdict == "holds"


def test_an_adapter_of_a_file_is_beside_it() -> None:
    file, command = adapter.command("losses/mine.py", "clip")
    assert (file, command) == (
        "losses/adapter.py", "verified-losses certify losses/adapter.py:adapter --as clip",
    )  # fmt: skip
    text = adapter.adapter(wild.three_modalities, wild.three_modalities, "losses/mine.py", "loss", "clip")
    assert text == (
        "from mine import loss\ndef adapter(image, text, scale):\n"
        "    return loss(image=image, text=text, depth=..., logit_scale=scale)\n"
    )


@pytest.mark.parametrize(
    ("name", "contract", "stated", "said"),
    [
        (
            "LearnedQueries",
            "infonce",
            "temperature=tau",
            "has no parameter tau: its parameters are temperature",
        ),
        ("DotProducts", "infonce", "temperature=tau", "has no parameter tau: it has no torch.nn.Parameter"),
        ("similarity_alone", "clip", "temperature=tau", "takes no tau: it takes similarity"),
    ],
)
def test_a_parameter_that_is_not_there_is_refused(name: str, contract: str, stated: str, said: str) -> None:
    with pytest.raises(Unusable, match=said):
        inspection(ask(f"tests.wild:{name}", contract, parameters=[stated])[1], contract)


@pytest.mark.parametrize(
    ("name", "contract", "said"),
    [
        (
            "BoundedScale",
            "clip",
            ", but it makes the scale of its parameter raw by an unknown map: known are",
        ),
        ("FixedScale", "infonce", " of a scale of 14.29, and it takes none$"),
    ],
)
def test_a_scale_that_is_made_by_an_unknown_map_is_refused_and_not_accused(
    name: str, contract: str, said: str
) -> None:
    with pytest.raises(Unusable, match=f"its values are the oracle's{said}"):
        inspection(ask(f"tests.wild:{name}", contract)[1], contract)


@pytest.mark.parametrize(
    ("name", "contract", "stated"),
    [
        ("BoundedTwice", "clip", []),
        ("BoundedScale", "clip", ["logit_scale=exp(raw)"]),
        ("LossesOfRows", "infonce", []),
        ("BoundedOfFive", "clip", []),
        ("ScaledTwice", "clip", []),
    ],
)
def test_what_no_scale_explains_or_the_stated_map_does_not_make_is_accused(
    name: str, contract: str, stated: list[str]
) -> None:
    subject, matches = inspection(ask(f"tests.wild:{name}", contract, parameters=stated)[1], contract)
    assert not matches
    (terms,) = (one for one in checks({"it": (contract, subject)}, parse("1")) if one.law.name == LAWS[0])
    assert verify(terms, CASES).verdict == "falsified"


def test_stated_parameters_of_modules_and_functions_are_kept() -> None:
    for name, contract, stated, held in (
        ("LearnedQueries", "infonce", "temperature=temperature", (("logit_scale", "inverse"),)),
        ("LearnedViews", "ntxent", "temperature=exp(log_temperature)", (("logit_scale", "exp_negative"),)),
        ("stacked_views", "ntxent", "temperature=temperature", ()),
    ):
        subject, matches = inspection(ask(f"tests.wild:{name}", contract, parameters=[stated])[1], contract)
        assert (subject.held, matches) == (held, True)
    with pytest.raises(ValueError, match="the contract cross_entropy has no scale, temperature or bias"):
        read_parameter("temperature=t", "cross_entropy")


def test_every_name_of_an_expression_is_known_to_one_contract_at_least() -> None:
    assert {name for names in NAMES.values() for name in names} >= {"image", "first", "logits", "dist_image"}


def test_a_compiled_module_is_called_with_what_it_holds() -> None:
    from verified_losses.properties.standalone.calls import call_holding

    loss = torch.compile(wild.LearnedTemperature(), backend="eager")
    held = torch.tensor(0.5, requires_grad=True)
    rows = torch.eye(3)
    call_holding(loss, {"temp": held}, rows, rows).backward()
    assert held.grad is not None


def test_inspect_prints_the_contract_that_fits_and_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("clip", "infonce")
    asked = {name: ask("tests.wild:LogScale", name)[1] for name in names}
    assert inspected(asked) == 0
    said = capsys.readouterr().out
    assert said.startswith("clip: its values are the oracle's\n")
    assert "verified-losses certify tests.wild:LogScale --as clip\n" in said
    assert inspected({"clip": ask("tests.wild:forgets_exp", "clip")[1]}) == 1
    assert "its values are not the oracle's" in capsys.readouterr().out
