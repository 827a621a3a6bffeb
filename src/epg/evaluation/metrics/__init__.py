"""Numbers from features: pure functions of arrays, computed in float64 on the CPU."""
