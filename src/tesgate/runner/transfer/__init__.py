"""Transfers of the runner: inputs into the attempt's scratch directory, outputs out of it. See `stage`."""
