"""Counterexamples quote functions, with all that these need and nothing that a reader may not have."""

import builtins

import pytest

from verified_losses.properties.cases import LAYOUTS, Case
from verified_losses.properties.contracts import contracts
from verified_losses.properties.laws import laws, plain_examples
from verified_losses.properties.show.counterexample import oracle_functions
from verified_losses.properties.show.quoting import Quotes, names_read
from verified_losses.properties.standalone import file, judges, launch
from verified_losses.properties.standalone.acts import called

CONTRACTS = contracts()
WEIGHTS = (("clip_loss_weight", 1.0), ("caption_loss_weight", 1.0))
ACTS = {law.act.__name__: law.act for law in laws()}
JUDGES = [judge for name, judge in vars(judges).items() if name.startswith("judge_")]
LAUNCHERS = [launch.launched, launch.by_judge, launch.by_law, *launch.ALONE, *launch.GLOO, *launch.HOROVOD]


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_file_binds_every_name_that_it_reads(name: str) -> None:
    contract, quotes = CONTRACTS[name], Quotes()
    oracles = oracle_functions(contract, contract.oracle_source(Case(rows=(1, 1), options=WEIGHTS)))
    assert oracles
    built = contract.build_with, contract.call_with
    text = quotes.source(*LAYOUTS.values(), *built, called, *ACTS.values(), *JUDGES, *oracles, *LAUNCHERS)
    module = {"__name__": name, "__file__": "case.py"} | {one: getattr(file, one) for one in quotes.given}
    exec("\n".join([*sorted(quotes.imports), text]), module)
    assert names_read(text) <= module.keys() | vars(builtins).keys()


def test_nothing_is_quoted_twice() -> None:
    quotes = Quotes()
    assert quotes.source(judges.judge_term)
    assert quotes.source(judges.judge_term) == ""
    assert "def agree" not in quotes.source(judges.judge_gradient)


def test_a_function_that_needs_another_package_is_not_quoted() -> None:
    with pytest.raises(ValueError, match="needs hypothesis"):
        Quotes().source(plain_examples)
