"""Encoder-decoders, classifiers, taggers and encoders of sentences."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from captum_cav import InputCAV, LayerCAV, SequenceCAV, scores
from captum_cav.errors import CAVTypeError, LayerError, ModelError, OptionError, TargetError
from tests.text.models import bart, built, classifier, encoder, llama, masked, t5, tagger, tokens

CLOSE: dict[str, Any] = {"rtol": 0, "atol": 1e-9}
SOURCE, OUTPUT = tokens(6), tokens(4, seed=1)
TEXT, OTHER = tokens(7), tokens(5, seed=1)


def step_by_step(model: Any, decoder: torch.Tensor, use_cache: bool, **options: Any) -> torch.Tensor:
    """The matrix of an encoder-decoder from one forward and one backward pass for each output token."""
    matrix = torch.zeros(len(decoder) - 1, len(SOURCE) + len(decoder), dtype=torch.float64)
    cav = InputCAV(
        lambda source, decoder: model(source, decoder_input_ids=decoder, use_cache=use_cache).logits[:, -1],
        normalize=None,
        **options,
    )
    for row in range(len(decoder) - 1):
        source, output = cav.attribute((SOURCE[None], decoder[None, : row + 1]), target=int(decoder[row + 1]))
        matrix[row, : len(SOURCE)] = source[0]
        matrix[row, len(SOURCE) : len(SOURCE) + row + 1] = output[0]
    return matrix


@pytest.mark.parametrize("rules", ["attnlrp", pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("build", [t5, bart])
def test_both_sides_of_an_encoder_decoder_are_explained(build: Any, attention: str, rules: str | None) -> None:
    model = built(build, attn_implementation=attention)
    found = SequenceCAV(model, rules=rules).attribute(SOURCE, OUTPUT)
    decoder = torch.cat([torch.tensor([model.config.decoder_start_token_id]), OUTPUT])
    for use_cache in (False, True):
        torch.testing.assert_close(found.contributions, step_by_step(model, decoder, use_cache, rules=rules), **CLOSE)
    assert found.segments == {"source": slice(0, 6), "output": slice(6, 11)}
    assert found.token_ids.tolist() == [*SOURCE.tolist(), *decoder.tolist()]
    assert found.output_ids.tolist() == OUTPUT.tolist()
    assert found.of("source").abs().sum() > 0
    assert found.of("output").abs().sum() > 0
    torch.testing.assert_close(found.contributions.sum(1) + found.constants + found.unexplained, found.scores, **CLOSE)
    if rules is None:
        assert found.unexplained.abs().max() < 1e-6, "both sides and the constants explain all of it"


@pytest.mark.parametrize("build", [t5, bart])
def test_layers_of_either_side_are_explained(build: Any) -> None:
    model = built(build)
    encoder, decoder = model.get_encoder(), model.get_decoder()
    name = "block" if build is t5 else "layers"
    layers = [getattr(encoder, name)[1], getattr(decoder, name)[0]]
    of_source, of_output = SequenceCAV(model, layers, rules="attnlrp").attribute(SOURCE, OUTPUT)
    assert of_source.of("source").abs().sum() > 0
    assert not of_source.of("output").any()
    assert of_output.of("output").abs().sum() > 0
    assert not of_output.of("source").any()
    (last,) = SequenceCAV(model, [layers[0]], rules="attnlrp").attribute(SOURCE, OUTPUT)
    torch.testing.assert_close(last.contributions, of_source.contributions, **CLOSE)


def test_an_encoder_decoder_generates() -> None:
    model = built(t5)
    found = SequenceCAV(model).attribute(SOURCE, max_new_tokens=3)
    with torch.no_grad():
        said = model.generate(SOURCE[None], max_new_tokens=3, do_sample=False)[0]
    assert found.token_ids[6:].tolist() == said.tolist()
    given = SequenceCAV(model).attribute(SOURCE, said[1:])
    torch.testing.assert_close(found.contributions, given.contributions, **CLOSE)


# Classes --------------------------------------------------------------------------------------------------------------


def test_classes_of_a_text() -> None:
    model = built(classifier)
    model.config.id2label = {0: "bad", 1: "so so", 2: "good"}
    found = SequenceCAV(model, rules=None).attribute(TEXT, target=[2, 0])
    expected = InputCAV(model, output="logits", normalize=None)
    for row, target in enumerate((2, 0)):
        torch.testing.assert_close(found.contributions[row], expected.attribute(TEXT[None], target)[0], **CLOSE)
    assert found.output_tokens == ["good", "bad"]
    assert found.segments == {"text": slice(0, 7)}
    with torch.no_grad():
        logits = model(TEXT[None]).logits[0]
    torch.testing.assert_close(found.scores, logits[[2, 0]], **CLOSE)
    torch.testing.assert_close(found.probabilities, logits.softmax(0)[[2, 0]], **CLOSE)
    assert found.unexplained.abs().max() < 1e-9
    rather = SequenceCAV(model, rules=None).attribute(TEXT, target=2, contrast=0)
    torch.testing.assert_close(rather.contributions[0], found.contributions[0] - found.contributions[1], **CLOSE)
    assert rather.contrast_tokens == [["bad"]]


def test_classes_of_tokens() -> None:
    model = built(tagger)
    found = SequenceCAV(model, rules=None).attribute(TEXT, target=[(3, 1), (-1, 0)])
    expected = InputCAV(model, output="logits", normalize=None)
    for row, target in enumerate([(3, 1), (6, 0)]):
        torch.testing.assert_close(found.contributions[row], expected.attribute(TEXT[None], target)[0], **CLOSE)
    with pytest.raises(TargetError, match=r"expected a pair of a position and an index, as target=\(position, index\)"):
        SequenceCAV(model).attribute(TEXT, target=1)
    with pytest.raises(TargetError, match="target names the position 7 of 7 tokens"):
        SequenceCAV(model).attribute(TEXT, target=(7, 1))
    with pytest.raises(CAVTypeError, match="target is \\['good'\\]; expected the index of a class"):
        SequenceCAV(model).attribute(TEXT, target="good")


def test_a_masked_word() -> None:
    model = built(masked)
    found = SequenceCAV(model, rules=None, score="log_odds").attribute(TEXT, target=(2, 5))
    expected = InputCAV(model, output=lambda found: found.logits[:, 2], normalize=None, score="log_odds")
    torch.testing.assert_close(found.contributions, expected.attribute(TEXT[None], 5), **CLOSE)


def test_a_model_that_is_not_causal_is_refused() -> None:
    with pytest.raises(ModelError, match=r"tokens that come later contribute .* target=\(position, token\)"):
        SequenceCAV(built(masked)).attribute(TEXT, OTHER)
    with pytest.raises(ModelError, match="BertForTokenClassification generates no text"):
        SequenceCAV(built(tagger)).attribute(TEXT)
    with pytest.raises(ModelError, match=r"logits of shape \(1, 3\); expected .* pass target=index"):
        SequenceCAV(built(classifier)).attribute(TEXT, OTHER)
    with pytest.raises(ModelError, match=r"the model returned a BaseModelOutput.*expected logits"):
        SequenceCAV(built(encoder)).attribute(TEXT, OTHER)


# Similarity -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_the_similarity_of_two_texts_is_explained_on_both_sides(pooling: Any) -> None:
    model = built(encoder)

    def vector(ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = model(ids).last_hidden_state
        return states.mean(1) if pooling == "mean" else states[:, 0]

    found = SequenceCAV(model, rules=None, pooling=pooling).attribute(TEXT, similar_to=OTHER)
    pair = InputCAV(lambda one, other: (vector(one), vector(other)), score=scores.Similarity(), normalize=None)
    first, second = pair.attribute((TEXT[None], OTHER[None]))
    torch.testing.assert_close(found.of("first"), first, **CLOSE)
    torch.testing.assert_close(found.of("second"), second, **CLOSE)
    with torch.no_grad():
        cosine = torch.cosine_similarity(vector(TEXT[None]), vector(OTHER[None]))
    torch.testing.assert_close(found.scores, cosine, **CLOSE)
    assert found.probabilities is None
    assert found.output_tokens == ["similarity"]
    swapped = SequenceCAV(model, rules=None, pooling=pooling).attribute(OTHER, similar_to=TEXT)
    torch.testing.assert_close(found.of("first"), swapped.of("second"), **CLOSE)
    by_function = SequenceCAV(
        model, rules=None, pooling=lambda out: out.last_hidden_state.mean(1) if pooling == "mean" else out[0][:, 0]
    ).attribute(TEXT, similar_to=OTHER)
    torch.testing.assert_close(found.contributions, by_function.contributions, **CLOSE)


def test_a_layer_that_is_reached_for_each_text() -> None:
    model = built(encoder)
    found = SequenceCAV(model, "encoder.layer.0", rules=None).attribute(TEXT, similar_to=OTHER)

    def pair(one: torch.Tensor, other: torch.Tensor) -> Any:
        return model(one).last_hidden_state.mean(1), model(other).last_hidden_state.mean(1)

    for call, name in enumerate(("first", "second")):
        cav = LayerCAV(pair, model.encoder.layer[0], score=scores.Similarity(), normalize=None, call=call)
        expected = cav.attribute((TEXT[None], OTHER[None])).sum(-1)
        torch.testing.assert_close(found.of(name), expected, **CLOSE)
    torch.testing.assert_close(found.contributions.sum(1) + found.constants + found.unexplained, found.scores, **CLOSE)
    assert found.unexplained.abs().max() < 1e-9


def test_several_pairs() -> None:
    model = built(encoder)
    one, other = SequenceCAV(model).attribute([TEXT, OTHER], similar_to=[OTHER, TEXT])
    torch.testing.assert_close(one.of("first"), other.of("second"), **CLOSE)
    with pytest.raises(ValueError, match="similar_to has 1 entries for 2 texts"):
        SequenceCAV(model).attribute([TEXT, OTHER], similar_to=[OTHER])
    with pytest.raises(OptionError, match="a similarity has no classes"):
        SequenceCAV(model).attribute(TEXT, similar_to=OTHER, contrast=1)


class Last(torch.nn.Module):
    """A recurrent classifier that reads the last state, not the row of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(61, 4), torch.nn.Linear(5, 3)
        self.layer = torch.nn.GRU(4, 5, batch_first=True)

    def forward(self, ids: torch.Tensor) -> Any:
        return self.head(self.layer(self.embedding(ids))[1][-1])


def test_what_a_layer_gives_beside_the_rows_of_tokens_is_unexplained() -> None:
    found = SequenceCAV(built(Last), "layer", rules=None).attribute(TEXT, target=1)
    assert not found.contributions.any()
    torch.testing.assert_close(found.constants, built(Last).head.bias[1:2].detach(), **CLOSE)
    torch.testing.assert_close(found.constants + found.unexplained, found.scores, **CLOSE)
    by_word = SequenceCAV(built(Last), rules=None).attribute(TEXT, target=1)
    assert by_word.unexplained.abs().max() < 1e-12


# Wrong arguments ------------------------------------------------------------------------------------------------------


class Turned(torch.nn.Module):
    """A causal model in which a layer has the tokens in its last dimension, three at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(61, 4), torch.nn.Linear(3, 61)
        self.conv = torch.nn.Conv1d(4, 3, 4)

    def forward(self, ids: torch.Tensor) -> Any:
        rows = torch.nn.functional.pad(self.conv(self.embedding(ids).transpose(1, 2)), (3, 0))
        return self.head(rows.transpose(1, 2))


def test_wrong_arguments() -> None:
    model = built(llama)
    with pytest.raises(OptionError, match="expected at most one of them"):
        SequenceCAV(model).attribute(TEXT, OTHER, target=1)
    with pytest.raises(OptionError, match='contrast compares logits; expected score="logit"'):
        SequenceCAV(model, score="log_odds").attribute(TEXT, OTHER, contrast=1)
    with pytest.raises(TargetError, match=r"contrast names \[61\]; expected indices from 0 to 60"):
        SequenceCAV(model).attribute(TEXT, OTHER, contrast=61)
    with pytest.raises(LayerError, match=r"layer 'conv' gives a tensor of shape \(1, 3, 8\); expected \(1, 11, ...\)"):
        SequenceCAV(Turned(), "conv", rules=None).attribute(TEXT, OTHER)
    with pytest.raises(OptionError, match="pooling is 'last'"):
        SequenceCAV(model, pooling="last")  # type: ignore[arg-type]
