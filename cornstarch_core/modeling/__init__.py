"""The parts of a composed model, and the code that runs them in a forward pass."""
