"""Fine-tuning: the state, one step with the loss injected, and the loop around it."""
