"""Tests import what they share by its package: ``from tests.contract.seats import run_job``."""
