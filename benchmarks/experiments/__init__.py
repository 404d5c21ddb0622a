"""Many trainings or many evaluations: comparisons, sweeps, searches, changed worlds, the whole suite."""
