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
    """Who will read a finding, and so which fix they can follow.

    Args:
        kind: ``"code"`` where ``configure_optimizers`` is theirs, ``"library"`` where it is installed, ``"command"``
            at lit-cosine's command line.
        module: The module's class.
        yaml: Whether a LightningCLI made the Trainer, so that callbacks may be listed in a YAML file.
        replaces: Whether a LearningRateScheduler would have to replace a scheduler.
    """

    kind: Literal["code", "library", "command"] = "code"
    module: str = ""
    yaml: bool = False
    replaces: bool = False

    def fix(self, code: str, command: str = "") -> str:
        """Return the fix that this reader can follow."""
        if self.kind == "command" and command:
            return command
        if self.kind == "library":
            return f"{self.callback()}; configure_optimizers of {self.module} stays as it is"
        return code

    def callback(self) -> str:
        """Return how to add a LearningRateScheduler."""
        if self.yaml:
            arguments = ", init_args: {replace: true}" if self.replaces else ""
            return f"add {{class_path: lit_cosine.LearningRateScheduler{arguments}}} to trainer.callbacks"
        arguments = "Cosine(), replace=True" if self.replaces else "Cosine()"
        return f"add LearningRateScheduler({arguments}) to the Trainer's callbacks"
