"""How people ask: the command, code, pytest."""
