"""The names of a new plugin and its modality. This file must not depend on the templates."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from keyword import iskeyword

from ..plugins.discovery import NAME, normalise

__all__ = ["TAKEN", "Names"]

TAKEN = frozenset(
    {
        *("add", "get", "set"),  # methods of a model: get_encoder
        *("distributed", "fusion", "generation", "kernel", "peft", "per_layer", "quantization"),  # kernel_config
        *("language_model", "text"),  # the other parts of a model
        *("add_special_tokens", "max_length", "pad_to_multiple_of", "padding", "padding_side", "return_tensors"),
        *("sampling_rate", "self", "truncation"),  # arguments of a processor, like the line above
        *("bos", "eos", "mask", "pad", "s", "unk"),  # special tokens of a tokenizer: <pad>
    }
)
"""Identifiers that can't be a modality's key, because a model, processor or tokenizer uses them otherwise."""


@dataclass(frozen=True)
class Names:
    """All names of a new plugin.

    Args:
        distribution: name of the distribution, which users ``pip install``, in the grammar of PEP 508.
        modality: name of the modality that the plugin encodes: the key in a model, and the keyword of a processor.

    Raises:
        ValueError: one of the names can't be used; the message says why, and suggests another name.

    Example:
        >>> names = Names("My.Plugin", "point_cloud")
        >>> names.id, names.package, names.prefix
        ('my-plugin', 'my_plugin', 'PointCloud')
    """

    distribution: str
    modality: str

    def __post_init__(self) -> None:
        self._check_distribution()
        self._check_package()
        self._check_modality()

    @property
    def id(self) -> str:
        """The id of the plugin: the normalised name of the distribution."""
        return normalise(self.distribution)

    @property
    def package(self) -> str:
        """The name of the Python package."""
        return self.id.replace("-", "_")

    @property
    def prefix(self) -> str:
        """The prefix of the names of the plugin's classes."""
        return "".join(part[:1].upper() + part[1:] for part in self.modality.split("_"))

    def _check_distribution(self) -> None:
        if not NAME.fullmatch(self.distribution):
            raise ValueError(
                f"NAME is {self.distribution!r}; a distribution's name has ASCII letters, digits, '-', '_' and '.', "
                "and begins and ends with a letter or digit, such as cornstarch-eeg"
            )

    def _check_package(self) -> None:
        if not self.package.isidentifier() or iskeyword(self.package):
            raise ValueError(
                f"NAME is {self.distribution!r}, so its package would be {self.package!r}, which Python can't import; "
                f"choose another, such as cornstarch-{self.id}"
            )
        found = find_spec(self.package)
        if found is not None and found.origin is not None:  # a folder without Python files has no origin
            raise ValueError(
                f"NAME is {self.distribution!r}, so its package would be {self.package!r}, which exists already "
                f"({found.origin}); choose another name, or uninstall that package"
            )

    def _check_modality(self) -> None:
        name = self.modality
        if not NAME.fullmatch(name) or not name.isidentifier() or iskeyword(name):
            raise ValueError(
                f"--modality is {name!r}; it has to be a Python identifier, such as eeg or point_cloud: ASCII letters, "
                "digits and '_', from a letter to a letter or digit, and not a keyword"
            )
        if name in TAKEN or name.endswith("_kwargs"):
            raise ValueError(
                f"--modality is {name!r}, which means something else to a model, a processor or a tokenizer; choose "
                "another, such as eeg or point_cloud"
            )
