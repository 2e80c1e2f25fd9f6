"""Which job gets which GPUs: policies behind a small protocol, and a simulation of what they would do over days."""
