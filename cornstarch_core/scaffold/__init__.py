"""Write the project of a new plugin for ``cornstarch plugins new``. This package must not import torch."""
