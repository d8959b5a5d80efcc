r"""Losses combined by a network that is trained by hypergradients (MELTR).

A model with parameters :math:`w` has :math:`T` losses :math:`l(w; B)`. A combiner with
parameters :math:`\phi` makes a scalar of them, which is what the model is trained on;
:math:`\phi` is trained so that a step of :math:`w` decreases the primary loss (Ko et
al. 2023, arXiv:2303.13009).

``combiner`` has the network and ``balancers`` every combiner by name;
``hypergradients`` has the gradients with respect to :math:`\phi` and ``meta_gradient``
a whole meta-step's; ``settings`` has the published configurations.
"""
