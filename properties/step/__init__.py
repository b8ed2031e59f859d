"""Training steps: several ranks and micro-batches must do what one process does with the whole batch."""
