"""The table of what came of faults, and which of them is a finding."""

from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from ..subjects import SHIPPED
from . import KINDS, VERDICTS, Result

COLUMNS = ("injected", "named", "generic", "unaffected", "silent", "hang", "abort")
HEADINGS = {"generic": "generic error", "unaffected": "not affected"}


def wrong(result: Result) -> str:
    """Return why a result is a finding, for what ranks got or for what is left; else nothing.

    Whichever the loss, every rank must end, and none may return a wrong value once another is gone. A shipped
    loss must name the faulty rank. Ranks that disagree and are not noticed are a limit of another loss, and a
    defect where it is judged strictly.
    """
    if result.left:
        return f"left behind: {'; '.join(result.left)}"
    verdict, is_shipped = result.verdict, _is_shipped(result)
    if verdict in ("unaffected", "named") or (verdict == "generic" and not is_shipped):
        return ""
    if is_limit(result):
        return ""
    worst = next(one for one in result.ranks if one.verdict == verdict)
    return f"{verdict} on rank {worst.rank}: {worst.said}"


def is_limit(result: Result) -> bool:
    """Whether ranks that disagree are not noticed, which is no defect of a loss that has not promised it."""
    strict = result.fault.call.subject.strict
    return result.fault.disagrees and result.verdict in ("silent", "abort") and not strict


def kinds(results: Sequence[Result]) -> list[tuple[str, Counter[str]]]:
    """Return how many faults of each kind had which verdict, and of all."""
    rows = [(kind, [one for one in results if one.fault.kind == kind]) for kind in KINDS]
    return [(name, _counts(some)) for name, some in [*rows, ("all", list(results))] if some]


def _counts(results: Sequence[Result]) -> Counter[str]:
    ran = [one for one in results if not one.not_run]
    verdicts: list[str] = [one.verdict for one in ran]
    return Counter(verdicts + ["injected"] * len(ran))


def laid_out(rows: Sequence[tuple[str, Counter[str]]]) -> Table:
    """Lay out the table for a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("fault", no_wrap=True)
    for name in COLUMNS:
        table.add_column(HEADINGS.get(name, name), justify="right")
    for name, counts in rows:
        table.add_row(name, *(_cell(column, counts[column]) for column in COLUMNS))
    return table


def markdown(rows: Sequence[tuple[str, Counter[str]]]) -> str:
    """Return the table as Markdown."""
    heads = ["fault", *(HEADINGS.get(name, name) for name in COLUMNS)]
    lines = [heads, ["---", *["---:"] * len(COLUMNS)]]
    lines += [[name, *(str(counts[column]) for column in COLUMNS)] for name, counts in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _cell(column: str, count: int) -> str:
    bad = column in ("silent", "hang", "abort") and count
    return f"[bold red]{count}[/]" if bad else str(count)


def left_over(results: Sequence[Result], asked: int) -> list[str]:
    """Return in words what the table does not show: limits, and what was not injected."""
    lines = []
    limits = [one for one in results if is_limit(one)]
    for verdict in VERDICTS:
        some = [one for one in limits if one.verdict == verdict]
        if some:
            kinds_of = ", ".join(dict.fromkeys(one.fault.kind for one in some))
            lines.append(
                f"limit, which is no defect unless --strict: ranks that disagree are not noticed "
                f"({kinds_of}: {len(some)} {verdict}), first: {some[0]}"
            )
    reasons: dict[str, list[Result]] = {}
    for one in results:
        if one.not_run:
            reasons.setdefault(one.not_run, []).append(one)
    lines += [
        f"not injected, {len(some)} times: {why}, first: {some[0].fault}" for why, some in reasons.items()
    ]
    if asked > len(results):
        lines.append(f"not injected: {asked - len(results)} of {asked} faults, for lack of time")
    ran = [one for one in results if not one.not_run]
    if ran and not any(sum(one.collectives) for one in ran):
        lines.append("no rank sends anything: no fault can show")
    return lines


def _is_shipped(result: Result) -> bool:
    subject = result.fault.call.subject
    return any(subject.target == shipped.target for _, shipped in SHIPPED.values())
