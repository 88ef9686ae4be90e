"""The commands of `unmask`, by what they are about."""
