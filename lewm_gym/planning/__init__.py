"""Search over actions with a world model: planners and the receding-horizon controller."""
