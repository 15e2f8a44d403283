"""What the plugin registers. That it is found, light, and names what exists is checked in ``test_conformance.py``."""

from cornstarch_timeseries import plugin

from cornstarch_core.plugins import registry


def test_names_are_the_documented_ones():
    """Users and checkpoints refer to these names."""
    kinds = ("encoder", "projector", "processor", "callback")
    assert {kind: [spec.name for spec in getattr(plugin, f"cornstarch_register_{kind}s")()] for kind in kinds} == {
        "encoder": ["patchtst", "series_conv"],
        "projector": ["patch_merge"],
        "processor": ["series", "series_window"],
        "callback": ["series"],
    }


def test_every_encoder_is_found_by_its_class_and_has_its_blocks_where_its_spec_says(patchtst, conv):
    """The registry knows it by its class; the dotted path leads to as many blocks as the config tells."""
    for module, blocks in ((patchtst(num_hidden_layers=1), 1), (conv(num_layers=3), 3)):
        registration = registry().find_encoder(module)
        assert registration.plugin == "cornstarch-timeseries"
        assert len(module.get_submodule(registration.spec.layers)) == blocks
