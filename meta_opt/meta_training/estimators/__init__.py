r"""Meta-gradient estimators: functions from an `Episode` to an `Estimator`.

``evolution_strategies`` has ``full_es``, ``truncated_es``, ``pes`` and ``nres``;
``backpropagation`` has ``bptt``.

**What is estimated.** An episode is :math:`S` windows with losses :math:`L_w` and
weights :math:`p_w` that sum to 1 (all :math:`1/S` unless given otherwise). The
objective is :math:`F(\theta) = E[\sum_w p_w L_w]`, over initial states and batches.

**Scale.** An estimate from one window :math:`w` is multiplied by :math:`S p_w` (1 for
equal weights), and :math:`w` is uniform over the episode. So estimators on single
windows have the same expectation as estimators on whole episodes, and the same learning
rate suits both.

**Non-finite values.** Losses are clipped to :math:`[-cap, cap]`, and a non-finite loss
counts as ``cap``. From then on that particle is dead: it gets a fresh inner state and
scores ``cap`` until its episode ends, as if its whole run had been scored at once, so
an early divergence costs more than a late one. When all runs that share an episode are
dead, the episode ends early: its remaining windows would contribute zero gradient, so
skipping them scales up the mean estimate and keeps its direction. A non-finite outer
gradient is replaced by 0.
"""
