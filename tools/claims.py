"""The page of the claims ledger, made from chapters/claims.yml and the results: python -m tools.claims"""

from itertools import groupby

from experiments.claims import Claim, ledger
from experiments.results import ROOT

PAGE = ROOT / "chapters/claims.md"

OPENING = """\
# The claims ledger

The claims of RCMHA's paper, of its public code, of its ancestors as far as they matter here, and of this book: what was claimed, what came out, and the test or the file that says so. The page is made from `chapters/claims.yml` and the results (`python -m tools.claims`); tests fail when a claim has no evidence, when the evidence is gone, or when a verdict is not what the measured interval says.

*Supported* and *contradicted* refer to our experiments: our recipe, our text, our hardware; *open* means that our interval holds both answers. *Not testable here* says why not. Effects carry 95 % intervals, the number of paired seeds, and how many comparisons the interval holds for together; timings carry the smallest and the largest of their rounds, and their median decides. Intervals hold together within a family of comparisons, not across families: of twenty families one may be expected to mislead somewhere. Rows about the same cells are not independent.
"""

HEAD = """\
:::{list-table}
:header-rows: 1
:widths: 31 15 26 28

* - claim
  - verdict
  - effect, note
  - evidence"""


def row(claim: Claim) -> str:
    found = claim.measured()
    effect = ""
    if found is not None and found.low == found.high:
        effect = f"{found.mean:.4g}"
    elif found is not None:
        signed = "+" if "benchmark" not in claim.effect else ""
        form = "{:" + signed + (".4f" if signed else ".2f") + "}"
        effect = f"{form.format(found.mean)} ({form.format(found.low)} to {form.format(found.high)})"
        together = 7 if "effect" in claim.effect else claim.effect.get("comparisons", 1)
        effect += f"; {found.n} {f'seeds, {together} together' if signed else 'rounds'}"
    shown = "<br>".join(part for part in (effect, claim.note) if part)
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
