"""Released losses held to their contracts: `make peers` certifies them and writes FINDINGS.md."""
