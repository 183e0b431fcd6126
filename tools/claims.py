"""The page of the claims ledger, made from chapters/claims.yml and the results: python -m tools.claims"""

import math
from itertools import groupby

from experiments import price
from experiments.claims import Claim, ledger
from experiments.results import ROOT

PAGE = ROOT / "chapters/claims.md"

OPENING = """\
# The claims ledger

The claims of RCMHA's paper, of its public code, of its ancestors as far as they matter here, and of this book: what was claimed, what came out, and the test or the file that says so. The page is made from `chapters/claims.yml` and the results (`python -m tools.claims`); tests fail when a claim has no evidence, when the evidence is gone, or when a verdict is not what the measured interval says.

*Supported* and *contradicted* refer to our experiments: our recipe, our text, our hardware. *Not testable here* says why not. A comparison over seeds is judged by one rule, written in `experiments/inference.py`: its 95 % interval, which allows for all comparisons of its question together, and an exact test that needs no normal distribution must both tell it from the bound; fewer than six seeds give no verdict. Otherwise it is *open*, and the row says how large an effect its runs would have shown, four times of five (with six seeds three times of five); "open" says neither that there is an effect nor that there is none. The questions, with their comparisons, measures and seeds, stand in `experiments/questions.py`; of those older than the rule, in `experiments/earlier.py`, the seeds and what was looked at had been chosen on the way.

At equal time the effect depends on the price of a step: the share by which a part makes it dearer. Such a row says at which price its figures are, how many prices were measured, and where the rule says that the part pays, costs, or is open (`experiments/price.py`). "At every measured price" has the figures of the dearest, and a verdict only if the rule says the same at all of them. No price is taken to be exact; how far the measured ones lie apart shows how far it may be off.

Timings carry the smallest and the largest of their rounds, and their median decides. A row without an effect rests on its test, which can show what our runs did, not what others would. Intervals hold together within a question, not across questions: of twenty questions one may be expected to mislead somewhere. Rows about the same cells are not independent.
"""

HEAD = """\
:::{list-table}
:header-rows: 1
:widths: 31 15 26 28

* - claim
  - verdict
  - effect, note
  - evidence"""


def effect(claim: Claim) -> str:
    """The effect with its interval, what it allows for, and of an open one the smallest that would have been shown."""
    if found := claim.finding():
        told = f"{found.interval}; {found.interval.n} seeds, {found.family} together, p {found.p:.3f}"
        if found.bound:
            told += f"; bound {found.bound:+.4f}"
        told += over_prices(claim)
        if found.settled:
            return told
        if math.isinf(found.smallest):
            return f"{told}; {found.interval.n} seeds can give no verdict"
        return f"{told}; ±{found.smallest:.4f} would have been shown"
    read = claim.measured()
    if read is None:
        return ""
    if read.low == read.high:
        return f"{read.mean:.4g}"
    return f"{read.mean:.2f} ({read.low:.2f} to {read.high:.2f}); {read.n} rounds"


def over_prices(claim: Claim) -> str:
    """The price of a step at which the row's figures are, the prices measured, and what the rule says over all of them."""
    curve = claim.curve()
    if curve is None:
        return ""
    measured = [found.price for found in price.prices(curve.step)]
    here = curve.given() if claim.effect["price"] == "as run" else measured[-1]
    question, comparison, measure = (claim.effect[key] for key in ("question", "comparison", "measure"))
    said = price.told(price.ranges(question, comparison, measure, max(0.15, measured[-1])))
    span = f"{len(measured)} measured, {100 * measured[0]:.1f} to {100 * measured[-1]:.1f} %"
    return f"; at a price of {100 * here:.1f} % a step ({span}); over prices: {said}"


def row(claim: Claim) -> str:
    shown = "<br>".join(part for part in (effect(claim), claim.note) if part)
    evidence = "<br>".join(f"`{name}`" for name in claim.evidence)
    return "* - " + "\n  - ".join((claim.statement, claim.verdict, shown, evidence))


def page() -> str:
    """The whole page, one table for each source."""
    parts = [OPENING]
    for source, claims in groupby(ledger(), key=lambda claim: claim.source):
        rows = "\n".join(row(claim) for claim in claims)
        parts.append(f"## {source}\n\n{HEAD}\n{rows}\n:::\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
