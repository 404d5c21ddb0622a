"""The tasks, as goal-conditioned Gymnasium environments that render 224x224 pixels, and their wrappers."""

__part_of__ = "lewm_gym"
