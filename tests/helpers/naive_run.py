"""A naive model of a run that changes, written from the table of docs/when-the-run-changes.md alone.

A line (step, progress, end) is the straight line from (step, progress) to (end, 1), clamped. Curves are functions of
progress; neither torch nor lit_cosine is used.
"""


def along(line, k):
    step, progress, end = line
    return 1.0 if k >= end else progress if k <= step else progress + (1 - progress) * (k - step) / (end - step)


class NaiveRun:
    def __init__(self, base, curve, N, W, C, cool, policy):
        self.base, self.curve, self.cool, self.policy = base, curve, cool, policy
        self.set_at, self.set_to, self.base_before = -2, None, base
        self.plan(N, W, C)

    def plan(self, N, W, C):
        self.N, self.W, self.C, self.S, self.cooldown = N, W, C, (W, 0.0, N - C), (N - C, 0.0, N)

    def lr(self, k):
        warmup = (k + 1) / (self.W + 1) if k < self.W else 1.0
        cools = k >= self.cooldown[0] and self.cooldown[0] < self.cooldown[2]
        return self.base * warmup * self.curve(along(self.S, k)) * (self.cool(along(self.cooldown, k)) if cools else 1)

    def resume(self, s, N, W, C, new=None):
        """Go on at step s with a length of N steps and, where given, with the schedule ``new``."""
        W = min(W, N - 1) if self.policy == "rescale" or s == 0 else self.W
        C = max(0, min(C, N - 1 - W))  # a cooldown that no longer fits is shortened
        if (N, C) == (self.N, self.C) and new is None:
            return
        p, q, end = along(self.S, s), along(self.cooldown, s), max(s, N - C)
        f, nothing_left = self.curve(p), s >= N - C or q > 0  # no step for another curve
        same = s == 0 or (new is not None and abs(new(along((self.W, 0.0, N - C), s)) - f) <= 1e-9 * f)
        if self.policy == "rescale" or same:  # before the first update nothing is a change
            self.plan(N, W, C)
        elif self.policy == "continue" and self.cooldown[0] < self.cooldown[2] and q > 0:
            self.N, self.C, self.cooldown = N, C, (s, q, N)
        elif self.policy != "keep":
            p = p if self.policy == "continue" and new is None else 0.0
            self.N, self.C, self.S, self.cooldown = N, C, (max(s, self.W), p, end), (end, 0.0, N)
        else:
            self.N, self.C = N, C  # the run is as long as it is, the curve stays
        if new is not None and self.policy == "continue" and not same:
            first, last = new(0), new(1)
            flat = first == last or nothing_left
            self.curve = lambda u: f if flat else last + (new(u) - last) * (f - last) / (first - last)
        else:
            self.curve = new or self.curve

    def start_cooldown(self, s, C):
        f, self.N = self.curve(along(self.S, s)), min(s + C, self.N)
        self.curve, self.cooldown = lambda u: f, (s, 0.0, self.N)

    def set_lr(self, s, x):
        """Somebody writes x to the group before update s."""
        if x == self.lr(s):
            return
        written, again = self.lr(s), s == self.set_at + 1 and x == self.set_to
        if x == written:
            return
        self.base_before = self.base_before if again else self.base
        moved = self.base * x / written if x <= 2 * written else max(self.base, x)
        self.base, self.set_at, self.set_to = x if s == 0 else self.base_before if again else moved, s, x
