"""Many trainings or many evaluations: comparisons, sweeps, searches, distribution shifts, the whole suite."""
