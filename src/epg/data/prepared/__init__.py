"""The prepared set: encoded at one size, checked, indexed; and what looks into it."""
