"""How fast environments step, datasets deliver, models train and agents plan."""
