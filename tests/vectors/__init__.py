"""Known answers with their sources, and the runner that compares fl_core with them.

``python -m tests.vectors FILE...`` takes any file with one of the two schemas. The runner only
translates names to fl_core's public functions and compares; it computes no answer of its own.
"""
