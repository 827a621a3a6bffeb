"""How fast a recipe is on this machine: `epg bench`, and the time of a step that studies plan with."""
