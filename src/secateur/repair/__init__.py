"""What stays makes up for what goes: between mask and cut, weights of those that read it change."""
