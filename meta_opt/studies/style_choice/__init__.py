"""Selection of the optimizer's weights, validated by leave-one-style-out."""
