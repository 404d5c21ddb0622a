"""Datasets of other formats and places: the reference's HDF5, Minari, LeRobot, the Hugging Face Hub."""
