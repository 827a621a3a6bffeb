"""What a run is: recipes, settings with their ranges, and what is wrong with them, in words."""
