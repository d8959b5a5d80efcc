"""Downloads: packages, the datasets built from them, and pretrained encoders."""
