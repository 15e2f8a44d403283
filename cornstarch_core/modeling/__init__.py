"""The parts of a composed model, and how one forward pass runs them."""
