"""The learned optimizer, the hand-designed rule under it, and the baselines."""
