"""Batch jobs: declared in `job`, run by `runner`, published in Redis, read by `predictions`.

`replay` computes recorded decisions again, bit for bit.
"""
