"""The benchmark: a grid of cases, each run as a fresh group of processes.

options -> grid -> runner -> worker -> measure -> summary: each takes the records of the one before it. This package loads
without torch; only the workers and the description of the machine need it.
"""
