"""The core's conformance kit, for the package and for each of its encoders."""

from __future__ import annotations

import numpy as np
import torch
from cornstarch_timeseries.conv import SeriesConvConfig, SeriesConvEncoder
from transformers import PatchTSTConfig, PatchTSTModel

from cornstarch_core.testing import EncoderConformance, PluginConformance


class TestPlugin(PluginConformance):
    """The package."""

    distribution = "cornstarch-timeseries"


class TestPatchTST(EncoderConformance):
    """Two channels, whose patches are tokens of their own."""

    encoder = "cornstarch-timeseries/patchtst"
    callbacks = "series"

    def make_module(self):
        """With layer norms: a batch norm mixes items while training."""
        return PatchTSTModel(
            PatchTSTConfig(
                context_length=32,
                patch_length=8,
                patch_stride=4,
                num_input_channels=2,
                d_model=16,
                ffn_dim=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                norm_type="layernorm",
            )
        )

    def make_items(self, rng):
        """Random walks of the one length, anywhere and of any scale."""
        return [rng.normal(0, 100, 2) + 10 ** rng.uniform(-2, 2) * rng.normal(size=(32, 2)).cumsum(0)]


class TestPatchTSTJoined(TestPatchTST):
    """The channels of a moment side by side in one token, with the default batch norms."""

    callback_options = {"channels": "joined"}  # noqa: RUF012 - as the kit documents it

    def make_module(self):
        """With batch norms: in eval mode, as everything here runs, they keep items apart."""
        return PatchTSTModel(
            PatchTSTConfig(context_length=32, patch_length=8, patch_stride=8, num_input_channels=2, d_model=16)
        )


class TestSeriesConv(EncoderConformance):
    """Two channels, series of any length."""

    encoder = "cornstarch-timeseries/series_conv"

    def make_module(self):
        """Patches of four steps."""
        torch.manual_seed(0)
        return SeriesConvEncoder(SeriesConvConfig(channels=2, patch_length=4, hidden_size=16))

    def make_items(self, rng):
        """Random walks of one step to a hundred."""
        steps = rng.integers(1, 100)
        return [10 ** rng.uniform(-2, 2) * rng.normal(size=(steps, 2)).cumsum(0)]


class TestPatchMerge(TestSeriesConv):
    """The same through the package's projector."""

    projection_type = "patch_merge"


class TestLists(TestSeriesConv):
    """One channel, given as a list of numbers."""

    def make_module(self):
        """The defaults."""
        return SeriesConvEncoder(SeriesConvConfig())

    def make_items(self, rng):
        """Whole numbers, as one writes them by hand."""
        return [rng.integers(-9, 10, rng.integers(1, 40)).tolist()]


def test_items_have_various_lengths():
    """What the kit is given for ``series_conv`` is worth checking: short and long ones, in one batch."""
    rng = np.random.default_rng(0)
    lengths = {len(item) for _ in range(50) for item in TestSeriesConv().make_items(rng)}
    assert min(lengths) < 4 < 80 < max(lengths)
