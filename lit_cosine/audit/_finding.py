"""A finding of the audit: what is wrong with a planned learning rate, and what its reader can do about it.

Convention: a finding has a code, one sentence with the numbers, and the fix. An error is certain to be a fault; a hint
may be intended, and ``ScheduleAudit("raise")`` does not stop a run for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Reader", "Severity"]

Severity = Literal["error", "hint"]


@dataclass(frozen=True)
class Finding:
    """A fault of the plan.

    Args:
        code: The kind of fault, such as ``"epoch-interval"``.
        message: One sentence with the numbers.
        fix: What to do.
        severity: ``"error"``, or ``"hint"`` where it may be intended.

    >>> print(Finding("constant", "the LR stays 0.1", "step the scheduler"))
    [constant] the LR stays 0.1. Fix: step the scheduler.
    """

    code: str
    message: str
    fix: str
    severity: Severity = "error"

    def __str__(self) -> str:
        """Return it in one line."""
        hint = ", a hint" if self.severity == "hint" else ""
        return f"[{self.code}{hint}] {self.message}. Fix: {self.fix}."


@dataclass(frozen=True)
class Reader:
    """Who will read a finding, and so which fix they can follow."""

    kind: Literal["code", "library", "command"] = "code"  # where configure_optimizers is: their code, installed, ours
    module: str = ""  # the module's class
    yaml: bool = False  # whether a LightningCLI made the Trainer, so that callbacks may be listed in a YAML file
    replaces: bool = False  # whether a LearningRateScheduler would have to replace a scheduler

    def fix(self, code: str, command: str = "") -> str:
        """Return the fix that this reader can follow: in ``code``, at lit-cosine's ``command`` line, or a callback."""
        if self.kind != "library":
            return command if command and self.kind == "command" else code
        if self.yaml:
            arguments = ", init_args: {replace: true}" if self.replaces else ""
            add = f"add {{class_path: lit_cosine.LearningRateScheduler{arguments}}} to trainer.callbacks"
        else:
            arguments = "Cosine(), replace=True" if self.replaces else "Cosine()"
            add = f"add LearningRateScheduler({arguments}) to the Trainer's callbacks"
        return f"{add}; configure_optimizers of {self.module} stays as it is"
