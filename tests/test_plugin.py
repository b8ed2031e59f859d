"""pytest --certify, as a person uses it: in a process of its own, in a folder of its own."""

from xml.etree import ElementTree

import pytest

from verified_losses.properties.show.certificate import Certificate, decode

LIMIT_SECONDS = 240
LOSSES = """
    import torch
    from torch.nn import functional as F


    class Right:
        def __call__(self, image_features, text_features, logit_scale):
            logits = logit_scale * image_features @ text_features.T
            labels = torch.arange(len(logits))
            return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


    class Doubled(Right):
        def __call__(self, image_features, text_features, logit_scale):
            return 2 * super().__call__(image_features, text_features, logit_scale)


    class Broken:
        def __init__(self):
            raise RuntimeError("my own mistake")
"""
QUICK = ["--certify-world", "1", "--certify-max-examples", "5", "--certify-dtype", "float64"]


def _run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(losses=LOSSES)
    return pytester.runpytest_subprocess(*arguments, timeout=LIMIT_SECONDS)


def test_a_training_step_is_a_target(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        train="""
        import torch


        class Forgets:
            def __init__(self, rank, world_size):
                self.model = torch.nn.Linear(3, 2)

            def batch(self, rows, seed):
                return {"x": torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))}

            def step(self, batch):
                loss = self.model(batch["x"]).square().mean()
                loss.backward()
                return loss
        """
    )
    done = _run(
        pytester, "--certify", "train:Forgets", "--certify-as", "step", "--certify-world", "1",
        "--certify-max-examples", "1", "--certify-json", "c.json",
    )  # fmt: skip
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["Forgets: used equals fresh does not hold in world single"])
    record = decode((pytester.path / "c.json").read_bytes())
    assert isinstance(record, Certificate)
    assert (record.contract, record.verdict) == ("step", "falsified")
    assert (pytester.path / str(record.properties[1].counterexample)).is_file()


def test_checks_run_beside_ordinary_tests(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        from hypothesis import settings

        settings.register_profile("house", derandomize=True, database=None, max_examples=1)
        """
    )
    pytester.makepyfile(
        test_ordinary="""
        from hypothesis import given, strategies as st

        @given(st.integers())
        def test_ordinary(number):
            pass
        """
    )
    done = _run(
        pytester, "--certify", "losses:Doubled", "--certify-as", "clip", *QUICK, "-n", "2", "-rf",
        "--certify-only", "terms*", "--certify-only", "inputs*", "--junitxml", "report.xml",
        "--hypothesis-profile", "house", "--hypothesis-seed", "7",
    )  # fmt: skip
    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(
        [
            "Doubled: terms equal the oracle does not hold in world single",
            "Falsified: rank 0, contrastive_loss: expected *, observed *, error * is * times its bound",
            "smallest case: Case(rows=(2,)*",
            "run: python *Doubled-terms-equal-the-oracle-*.py",
            "seed 7",
            "FAILED certify::Doubled::terms equal the oracle[[]single]*",
        ],
        consecutive=False,
    )
    done.stdout.no_fnmatch_line("*Traceback*")
    assert len(list((pytester.path / "build" / "counterexamples").iterdir())) == 1
    cases = ElementTree.parse(pytester.path / "report.xml").iter("testcase")
    named = {(case.get("classname"), case.get("name")): case.find("failure") for case in cases}
    failure = named["certify.Doubled", "terms equal the oracle[single]"]
    assert failure is not None
    assert "smallest case" in (failure.text or "")
    assert named["certify.Doubled", "inputs unchanged[single]"] is None
    again = ["--certify", "losses:Doubled", "--certify-as", "clip", "--certify-only", "terms*", *QUICK]
    rerun = _run(pytester, *again, "--lf", "--certify-seed", "1")
    rerun.assert_outcomes(failed=1)
    rerun.stdout.fnmatch_lines(["seed 1"])


def test_a_target_alone_holds(pytester: pytest.Pytester) -> None:
    target = ["--certify", "losses.py:Right", "--certify-as", "clip", "--certify-seed", "1"]
    done = _run(pytester, *target, *QUICK, "-x", "-k", "certify and terms")
    done.assert_outcomes(passed=1)


def test_a_known_finding_is_expected(pytester: pytest.Pytester) -> None:
    pytester.makefile(
        ".toml", known='[[known]]\nproperty = "terms equal the oracle"\nreason = "as we train"\n'
    )
    target = ["--certify", "losses:Doubled", "--certify-as", "clip", "--certify-known", "known.toml"]
    only = ["--certify-only", "terms*", "--certify-only", "gradients*"]
    done = _run(pytester, *target, *QUICK, *only, "-n", "1", "-rx")
    done.assert_outcomes(xfailed=1, failed=1)
    done.stdout.fnmatch_lines(["XFAIL certify::Doubled::terms equal the oracle[[]single] - *as we train"])


def test_items_are_named_and_chosen_within_a_shard(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(other="from losses import Right")
    targets = ["--certify", "losses:Right", "--certify-as", "clip", "--certify", "other:Right"]
    done = _run(
        pytester, *targets, "--certify-as", "clip", "--certify-world", "1,sim:2-3", "--collect-only", "-q",
        "-k", "other and (terms or inputs)", "--certify-shard", "2/2",
    )  # fmt: skip
    assert done.ret == 0
    assert [line for line in done.outlines if line.startswith("certify")] == [
        "certify::other:Right::terms equal the oracle[single]",
        "certify::other:Right::inputs unchanged[single]",
    ]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--certify-seed", "3"], "--certify-seed: expected a --certify TARGET beside it"),
        (
            ["--certify", "losses:Right", "--certify-as", "clip", "--certify-known", "x.toml"],
            "--certify-known: cannot read x.toml: No such file",
        ),
        (
            ["--certify", "losses:Right", "--certify-as", "clip", "--certify-shard", "3/2"],
            "--certify-shard: expected i/n, with i from 1 to n, as 1/4, got '3/2'",
        ),
        (
            ["--certify", "losses:Right", "--certify-as", "clip", "--certify-device", "gpu"],
            "--certify-device: expected cpu, cuda, cuda:1 or all, separated by commas, got 'gpu'",
        ),
        (
            ["--certify", "losses:Right", "--certify-as", "clip", "--certify-max-time", "soon"],
            "--certify-max-time: expected seconds, or a time like 60s, 5m or 1h, got 'soon'",
        ),
        (["--certify", "losses:Right"], "--certify-as: expected one for each --certify, 1, got 0"),
        (["--certify", "losses:Right", "--certify-as", "clap"], "--certify-as: expected one of clip, coca"),
        (
            ["--certify", "losses:Broken", "--certify-as", "clip", "-n", "2"],
            "losses:Broken: raised as it was constructed",
        ),
    ],
)
def test_a_wrong_argument_is_named(pytester: pytest.Pytester, arguments: list[str], named: str) -> None:
    pytester.makepyfile(losses=LOSSES)
    done = pytester.runpytest_inprocess(*arguments)
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    said = done.stderr.str()
    assert f"ERROR: {named}" in said
    assert ("my own mistake" in said) == ("Broken" in named)
    assert "INTERNALERROR" not in said


def test_what_time_does_not_allow_is_not_certified(pytester: pytest.Pytester) -> None:
    asked = ["--certify-as", "clip", "--certify-world", "1", "--certify-only", "terms*"]
    done = _run(pytester, "--certify", "losses:Right", *asked, "--certify-max-time", "0.001s")
    done.assert_outcomes(failed=1)
    assert "Right: terms equal the oracle was not verified in world single: out of time" in done.stdout.str()


def test_a_missing_dependency_is_named(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import sys; sys.modules['numpy'] = None")
    done = _run(pytester, "--certify", "losses:Right", "--certify-as", "clip")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "ERROR: --certify: needs verified-losses[verify] installed" in done.stderr.str()


def test_what_the_project_lists_is_certified_and_the_certificate_written(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml(
        """
        [tool.verified-losses]
        world = "1"
        max-examples = 2
        only = ["terms*", "gradients*"]

        [[tool.verified-losses.targets]]
        target = "losses:Doubled"
        as = "clip"
        dtype = "float64"
        """
    )
    files = ["--certify-json", "certificate.json", "--certify-format", "github", "--certify-fail-fast"]
    done = _run(pytester, "--certify", *files, "-n", "1")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(["::error file=losses.py,line=*,title=Doubled%3A terms equal the oracle *"])
    done.stdout.fnmatch_lines(["*--certify-fail-fast: Doubled: terms equal the oracle does not hold*"])
    record = decode((pytester.path / "certificate.json").read_bytes())
    assert isinstance(record, Certificate)
    assert (record.verdict, record.target) == ("falsified", "losses:Doubled")
    assert any("gradients equal the oracle" in line for line in record.not_verified), record.not_verified
