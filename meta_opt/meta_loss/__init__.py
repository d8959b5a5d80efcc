r"""Learned combinations of losses, trained by hypergradients (MELTR).

A model with parameters :math:`w` has :math:`T` losses :math:`l(w; B)`. A combiner with
parameters :math:`\phi` maps them to a scalar, on which the model is trained;
:math:`\phi` is trained so that a step of :math:`w` decreases the primary loss (Ko et
al. 2023, arXiv:2303.13009).

``combiner`` has the network and ``balancers`` all combiners by name;
``hypergradients`` has the gradients with respect to :math:`\phi` and ``meta_gradient``
the gradient of a whole meta-step; ``settings`` has the published configurations.
"""
