"""Released trainers, as training steps that can be certified: `make trainers`."""
