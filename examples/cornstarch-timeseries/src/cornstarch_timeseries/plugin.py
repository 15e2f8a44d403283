"""What this plugin registers. Targets are imported when something is built, so this needs no torch and no numpy.

One entry point in ``pyproject.toml`` names this module. The core needs nothing else to find the plugin.
"""

from cornstarch_core.hookspecs import hookimpl
from cornstarch_core.specs import CallbackSpec, EncoderSpec, ProcessorSpec, ProjectorSpec

__all__ = [
    "cornstarch_register_callbacks",
    "cornstarch_register_encoders",
    "cornstarch_register_processors",
    "cornstarch_register_projectors",
]

HERE = "cornstarch_timeseries"


@hookimpl
def cornstarch_register_encoders() -> list[EncoderSpec]:
    """``"patchtst"``, a class of transformers, and ``"series_conv"``, a module of this package."""
    return [
        EncoderSpec(
            name="patchtst",
            modality="series",
            classes=("transformers.models.patchtst.modeling_patchtst:PatchTSTModel",),
            input_names=("past_values",),
            target=f"{HERE}.patchtst:PatchTST",
            layers="encoder.layers",
            processor="series_window",
        ),
        EncoderSpec(
            name="series_conv",
            modality="series",
            classes=(f"{HERE}.conv:SeriesConvEncoder",),
            input_names=("series", "levels"),
            target=f"{HERE}.conv:SeriesConv",
            layers="blocks",
            processor="series",
        ),
    ]


@hookimpl
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """``"series"``: series of any length; ``"series_window"``: series of the one length that PatchTST takes."""
    return [
        ProcessorSpec(
            name=name,
            modality="series",
            target=f"{HERE}.processors:{target}",
            media_names=("series",),
            content_types=("series",),
        )
        for name, target in (("series", "Series"), ("series_window", "SeriesWindow"))
    ]


@hookimpl
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """``"series"``: one sequence of tokens out of the channels that PatchTST keeps apart."""
    return [CallbackSpec(name="series", modality="series", target=f"{HERE}.patchtst:SeriesCallbacks")]


@hookimpl
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """``"patch_merge"``: one token out of several neighbouring patches."""
    return [ProjectorSpec(name="patch_merge", target=f"{HERE}.patch_merge:PatchMerge")]
