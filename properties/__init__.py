"""What must hold, for any implementation: cases, contracts, worlds, laws and the certifier."""
