"""The parts of MultimodalProcessor and MultimodalCollator, which turn text and media into a batch."""
