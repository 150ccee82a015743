"""Faults on a seeded schedule while events flow through real parts, and a check that no number is wrong afterwards."""
