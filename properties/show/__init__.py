"""What people get: the certificate, its page, the terminal, counterexamples."""
