"""What this plugin registers. Imports no torch, transformers or numpy: targets are imported when something is built.

One entry point in ``pyproject.toml`` names this module; that is all it takes to be found.
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
            num_tokens=f"{HERE}.patchtst:num_tokens",
            dummy_inputs=f"{HERE}.patchtst:dummy_inputs",
            layers="encoder.layers",
            processor="series_window",
        ),
        EncoderSpec(
            name="series_conv",
            modality="series",
            classes=(f"{HERE}.conv:SeriesConvEncoder",),
            input_names=("series", "levels"),
            num_tokens=f"{HERE}.conv:num_tokens",
            dummy_inputs=f"{HERE}.conv:dummy_inputs",
            prefix_tokens=f"{HERE}.conv:prefix_tokens",
            layers="blocks",
            processor="series",
            build=f"{HERE}.conv:build_encoder",  # transformers can't make it again, so that loading asks this plugin
        ),
    ]


@hookimpl
def cornstarch_register_processors() -> list[ProcessorSpec]:
    """``"series"``: series of any length; ``"series_window"``: of the one length that PatchTST takes."""
    return [
        ProcessorSpec(
            name=name,
            modality="series",
            build=f"{HERE}.processors:{build}",
            prepare=f"{HERE}.series:prepare_series",
            media_names=("series",),
            content_types=("series",),
        )
        for name, build in (("series", "series_processor"), ("series_window", "window_processor"))
    ]


@hookimpl
def cornstarch_register_callbacks() -> list[CallbackSpec]:
    """``"series"``: one sequence of tokens out of the channels that PatchTST keeps apart."""
    return [CallbackSpec(name="series", modality="series", build=f"{HERE}.patchtst:series")]


@hookimpl
def cornstarch_register_projectors() -> list[ProjectorSpec]:
    """``"patch_merge"``: one token out of several neighbouring patches."""
    return [
        ProjectorSpec(
            name="patch_merge",
            build=f"{HERE}.patch_merge:PatchMergeProjector",
            num_tokens=f"{HERE}.patch_merge:num_tokens",
        )
    ]
