"""Output: the certificate, its page, the terminal, counterexamples."""
