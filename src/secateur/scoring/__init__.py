"""What matters: criteria, what is removed together, and how the goal is approached."""
