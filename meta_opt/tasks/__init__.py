"""Small tasks on real data for meta-training and comparing optimizers."""
