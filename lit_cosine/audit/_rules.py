"""All rules together: what is wrong with the planned learning rates of one optimizer.

Convention: one fault is one finding. Of one scheduler's rules the first error is reported, or else the first hint:
later ones would name its symptoms. Only an idle start is reported beside another fault.
"""

from __future__ import annotations

from collections.abc import Iterator

from lit_cosine.audit import _length_rules, _optimizer_rules, _value_rules
from lit_cosine.audit._curve import Curve
from lit_cosine.audit._finding import Finding
from lit_cosine.audit._situation import Scheduled, Situation

__all__ = ["findings_of"]


def findings_of(situation: Situation) -> list[Finding]:
    """Return what is wrong with the LRs of one optimizer; empty if nothing is."""
    found = [finding for rule in _optimizer_rules.RULES for finding in rule(situation)]
    if any(finding.code == "group-not-covered" and finding.severity == "error" for finding in found):
        return found
    return found + [finding for one in situation.scheduled for finding in _of_scheduler(one, situation)]


def _of_scheduler(scheduled: Scheduled, situation: Situation) -> list[Finding]:
    """Return what is wrong with one scheduler."""
    if found := [*_length_rules.horizon_findings(scheduled, situation)]:
        return found
    if scheduled.stepping is None or any(one.depends for one in situation.scheduled):
        return []  # its LR is not known
    curve, first = Curve(scheduled, scheduled.stepping, situation), None
    for finding in _of_curve(curve):
        first = finding if first is None or finding.severity == "error" else first
        if first.severity == "error":
            break
    idle = [] if first is not None and first.code == "bad-value" else [*_length_rules.idle_start(curve)]
    if situation.trace.updates_below(0.0) >= situation.trace.updates and idle:
        return idle
    return idle if first is None else [*idle, first]


def _of_curve(curve: Curve) -> Iterator[Finding]:
    # the end of a run without a known end is not judged
    end_rules = () if curve.situation.open_end else _length_rules.END_RULES
    for rule in (*_value_rules.RULES, *_length_rules.STEPPING_RULES, *end_rules):
        yield from rule(curve)
