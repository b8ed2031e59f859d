"""Training steps with planted defects, and right ones that differ in form."""
