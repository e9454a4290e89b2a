"""What goes wrong around a call: interrupts, other threads, modes, leftovers."""
