"""What is downloaded: packages, the datasets built of them, pretrained encoders."""
