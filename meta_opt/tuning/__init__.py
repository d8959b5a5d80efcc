"""Search for the settings of an optimizer: Optuna over an objective callable."""
