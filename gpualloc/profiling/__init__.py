"""Where a training step goes: one recording per rank, its parts, and a verdict with a next step."""
