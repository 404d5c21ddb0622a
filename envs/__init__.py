"""The tasks, as goal-conditioned Gymnasium environments that render 224x224 pixels, and their wrappers."""
