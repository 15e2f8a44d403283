"""The parts of MultimodalProcessor and MultimodalCollator: from text and media to a batch."""
