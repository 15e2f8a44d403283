"""The rooms behind MultimodalProcessor and MultimodalCollator: from text and media to a batch."""
