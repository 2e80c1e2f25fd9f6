"""From plan to running jobs: GPU leases, one engine per file, and records of what runs where."""
