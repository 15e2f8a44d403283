"""Language models consist of a decoder and a head, others are refused; embeddings and heads get new rows."""

import pytest
import tiny
import torch

from cornstarch_core.errors import CheckpointError
from cornstarch_core.interop.decoder_and_head import check_run, decoder_and_head, with_rows


def test_decoder_and_head_are_found():
    """The decoder and the head of a causal language model are its own modules, not copies."""
    model = tiny.llama()
    assert decoder_and_head("here", model) == (model.model, model.lm_head)


@pytest.mark.parametrize("break_it", ["headless", "more", "base"])
def test_a_model_of_other_parts_is_refused(break_it):
    """A model without a head, with a third part, or with only the decoder is refused."""
    model = tiny.llama()
    if break_it == "headless":
        model.lm_head = None
    elif break_it == "more":
        model.second_head = torch.nn.Linear(64, 2)
    else:
        model = model.model
    with pytest.raises(CheckpointError, match="here: the language model, a Llama.*, does not consist of a decoder and"):
        decoder_and_head("here", model)


def scaled(model):
    """Halve the logits."""
    model.lm_head.forward, inner = (lambda hidden: inner(hidden)), model.lm_head.forward
    forward = model.forward

    def half(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = half


def shifted(model):
    """Change what the decoder gives before the head gets it."""
    model.lm_head.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))


def bypassed(model):
    """Call the decoder in a way that runs none of its hooks."""
    model.model.register_forward_hook(lambda *_: None)
    model.model._call_impl = model.model.forward


CHANGES = {"scaled": scaled, "shifted": shifted, "bypassed": bypassed}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_does_more_is_refused(change):
    """It changes its logits or the input of its head, or runs so that this can't be seen."""
    model = tiny.llama()
    check_run("here", model)
    CHANGES[change](model)
    with pytest.raises(CheckpointError, match="here: LlamaForCausalLM does more to its logits"):
        check_run("here", model)


def test_a_model_that_does_not_run_from_embeddings_is_refused():
    """The error holds the reason that the model gives."""
    model = tiny.llama()

    def forward(input_ids, **kwargs):
        raise AssertionError

    model.forward = forward
    with pytest.raises(CheckpointError, match="can't be run from embeddings: .*input_ids"):
        check_run("here", model)


def test_the_run_leaves_no_trace():
    """No hook and no gradient is left, and the training mode is unchanged."""
    model = tiny.llama().train()
    check_run("here", model)
    assert model.training
    assert not model.model._forward_hooks
    assert not model.lm_head._forward_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("tie", [True, False])
def test_tables_grow_by_their_mean(tie):
    """New rows of embeddings and head are the mean of the old ones; tied tensors stay one tensor."""
    model = tiny.llama(tie_word_embeddings=tie)
    name = "model.language_model.embed_tokens.weight"
    grown = with_rows({}, 103, model.model, model.lm_head)
    assert grown.keys() == {name, "lm_head.weight"}
    assert (grown[name] is grown["lm_head.weight"]) is tie
    for tensor, old in (
        (grown[name], model.model.embed_tokens.weight),
        (grown["lm_head.weight"], model.lm_head.weight),
    ):
        assert torch.equal(tensor[:100], old)
        assert torch.equal(tensor[100:], old.mean(0).expand(3, -1))
    same = with_rows({}, 100, model.model, model.lm_head)
    assert same[name].data_ptr() == model.model.embed_tokens.weight.data_ptr()
