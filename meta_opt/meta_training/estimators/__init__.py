r"""Meta-gradient estimators of one form: an `Episode` in, an `Estimator` out.

``evolution_strategies`` has ``full_es``, ``truncated_es``, ``pes`` and ``nres``;
``backpropagation`` has ``bptt``.

**What is estimated.** An episode is :math:`S` windows with losses :math:`L_w` and
weights :math:`p_w` that sum to 1 (all :math:`1/S` unless given otherwise). The
objective is :math:`F(\theta) = E[\sum_w p_w L_w]`, over initial states and batches.

**Scale.** An estimate made from one window :math:`w` is multiplied by :math:`S p_w`
(1 for equal weights), and :math:`w` is uniform over the episode. So whatever sees one
window at a time has the same expectation as what sees whole episodes, and a learning
rate means the same for each of them.

**Numbers that are not finite.** A loss is clipped to :math:`[-cap, cap]`, and one that
is not finite counts as ``cap``. From there on that particle is dead: it is given a
fresh inner state and keeps scoring ``cap`` until its episode ends, as it would had
its whole run been scored at once, so an early divergence costs more than a late one.
When nothing that shares an episode is alive, the episode ends early: its other windows
would add nothing, so the mean estimate is scaled up and keeps its direction. An outer
gradient that is not finite becomes 0.
"""
