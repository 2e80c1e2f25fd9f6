"""Whatever bytes and arguments: an answer or an error of ours. `python -m tests.fuzz --help` searches longer than the tests do."""
