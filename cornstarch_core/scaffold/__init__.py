"""``cornstarch plugins new``: check the names, and write the project of a new plugin. Must not import torch."""
