"""The errors that Cornstarch raises on purpose.

::

    CornstarchError
    ├── PluginError                      something about a plugin
    │   ├── PluginLoadError              a plugin, or something it names, could not be imported
    │   ├── UnknownNameError             no plugin registers what was looked up   (also a LookupError)
    │   └── AmbiguousNameError           two plugins register the same bare name  (also a LookupError)
    ├── CompositionError                 parts that do not fit together           (also a ValueError)
    ├── InputError                       a batch that can't be processed          (also a ValueError)
    │   ├── PlaceholderMismatchError     placeholders and features differ in number
    │   ├── TruncatedSpanError           truncation would cut into a media span
    │   └── MediaError                   one media item is broken or of the wrong kind
    └── CheckpointError                  a folder that can't be loaded or saved   (also an OSError)
        └── MissingPluginError           the saved model needs a plugin that is not there

Each message says what was requested, what was found and where, and what to do next.
"""

__all__ = [
    "AmbiguousNameError",
    "CheckpointError",
    "CompositionError",
    "CornstarchError",
    "InputError",
    "MediaError",
    "MissingPluginError",
    "PlaceholderMismatchError",
    "PluginError",
    "PluginLoadError",
    "TruncatedSpanError",
    "UnknownNameError",
]


class CornstarchError(Exception):
    """Base of every error that Cornstarch raises on purpose."""


class PluginError(CornstarchError):
    """Something about a plugin is wrong."""


class PluginLoadError(PluginError):
    """A plugin, or an object that one of its specs names, could not be imported."""


class UnknownNameError(PluginError, LookupError):
    """No active plugin registers what was looked up."""


class AmbiguousNameError(PluginError, LookupError):
    """Two plugins register the same bare name; use the qualified one."""


class CompositionError(CornstarchError, ValueError):
    """Parts of a model do not fit together, or one of them can't be described."""


class InputError(CornstarchError, ValueError):
    """A batch, or the text and media of one, can't be processed."""


class PlaceholderMismatchError(InputError):
    """The number of placeholder tokens differs from the number of features or of media items."""


class TruncatedSpanError(InputError):
    """Truncation would cut into, or drop, the placeholder span of a media item."""


class MediaError(InputError):
    """One media item is broken, empty or of the wrong kind."""


class CheckpointError(CornstarchError, OSError):
    """A folder can't be loaded as, or saved from, a multimodal model."""


class MissingPluginError(CheckpointError):
    """A saved model was made with a plugin that is missing, too old, too new or blocked."""
