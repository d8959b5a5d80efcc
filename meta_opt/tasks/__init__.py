"""Small real tasks that optimizers are meta-trained and compared on."""
