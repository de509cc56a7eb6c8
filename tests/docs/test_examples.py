"""The examples with real weights: each network against its own runtime, each map against what it says.

Reference numbers were computed with TensorFlow 2.15 and librosa 0.11 (musicnn 0.1.0) and node (lande 1.0.10); magika's
runtime comes with its package.
"""

from __future__ import annotations

import importlib.metadata
import struct
import sys
import wave
from pathlib import Path

import matplotlib.image
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_cav import InputCAV, LayerCAV, verify
from captum_cav.errors import InputError, ModelError
from captum_cav.zoo.weights import packaged
from examples import audio, source_code, text
from examples.weights import read_checkpoint

ROOT = Path(__file__).parents[2]
LANDE = ROOT / text.PACKAGE


def installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def run(module, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()


def height(picture: Path) -> int:
    return len(matplotlib.image.imread(picture))


class TestWeights:
    def test_a_package_that_is_absent_is_named_with_how_to_install_it(self) -> None:
        with pytest.raises(
            ModelError,
            match=r"^the file a/b of the package no-such is needed, but the package is not installed: "
            r"pip install no-such==1$",
        ):
            packaged("no-such", "a/b", "no-such==1")

    def test_a_file_that_a_package_lacks_is_named(self) -> None:
        with pytest.raises(
            ModelError,
            match=r"^the package captum \S+ does not hold captum/no\.pt: pip install --force-reinstall captum$",
        ):
            packaged("captum", "captum/no.pt", "captum")

    def test_a_checkpoint_is_read_array_by_array(self, tmp_path: Path) -> None:
        first, second = torch.arange(6.0).reshape(2, 3), torch.tensor(7.5)
        write_checkpoint(tmp_path / "model", {"layer/bias": first, "layer/kernel": second})
        found = read_checkpoint(tmp_path / "model.index")
        assert list(found) == ["layer/bias", "layer/kernel"]
        torch.testing.assert_close(found["layer/bias"], first, rtol=0, atol=0)
        torch.testing.assert_close(found["layer/kernel"], second, rtol=0, atol=0)

    @pytest.mark.parametrize("kept", [0, 20, 60])
    def test_a_damaged_checkpoint_is_refused(self, tmp_path: Path, kept: int) -> None:
        write_checkpoint(tmp_path / "model", {"a": torch.ones(2), "b": torch.ones(3)})
        index = tmp_path / "model.index"
        index.write_bytes(index.read_bytes()[:kept])
        with pytest.raises(ModelError, match=r"^cannot read the checkpoint .*model\.index: "):
            read_checkpoint(index)

    def test_a_checkpoint_without_its_data_is_refused(self, tmp_path: Path) -> None:
        write_checkpoint(tmp_path / "model", {"a": torch.ones(2)})
        (tmp_path / "model.data-00000-of-00001").unlink()
        with pytest.raises(ModelError, match=r"^cannot read the checkpoint .*No such file"):
            read_checkpoint(tmp_path / "model.index")


def write_checkpoint(path: Path, arrays: dict[str, torch.Tensor]) -> None:
    """A TensorFlow checkpoint of numbers below 128, so that each is one byte."""
    entries, data = [(b"", b"\x08\x01")], b""
    for name, array in arrays.items():
        dims = b"".join(b"\x12\x02\x08" + bytes([size]) for size in array.shape)
        values = array.numpy().tobytes()
        entry = b"\x08\x01\x12" + bytes([len(dims)]) + dims + bytes([0x20, len(data), 0x28, len(values)]) + b"\x35cccc"
        entries.append((name.encode(), entry))
        data += values
    block = table_block(entries)
    index = table_block([(b"z", bytes([0, len(block)]))])
    place = bytes([len(block) + 5, len(index)])
    footer = (b"\0\0" + place).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    path.with_name(path.name + ".index").write_bytes(block + b"\0cccc" + index + b"\0cccc" + footer)
    path.with_name(path.name + ".data-00000-of-00001").write_bytes(data)


def table_block(entries: list[tuple[bytes, bytes]]) -> bytes:
    block, before = b"", b""
    for key, value in entries:
        shared = next((n for n, pair in enumerate(zip(key, before, strict=False)) if pair[0] != pair[1]), 0)
        block += bytes([shared, len(key) - shared, len(value)]) + key[shared:] + value
        before = key
    return block + struct.pack("<II", 0, 1)


def test_a_sound_in_another_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((2, 2, 44100, 0, "NONE", ""))
        file.writeframes(bytes(400))
    with pytest.raises(
        InputError,
        match=r"has 16 bits, 2 channels, 44100 samples a second and starts with 100 samples; expected 16 bits, "
        r"1 channel, 16000 samples a second, 47872 samples or more: ffmpeg -i SOUND -ar 16000 -ac 1 SOUND\.wav$",
    ):
        audio.read_wave(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_text("no sound")
    with pytest.raises(InputError, match=r"^cannot read .*b\.wav as a WAV file: "):
        audio.read_wave(tmp_path / "b.wav")


def test_a_sound_is_read_as_it_was_written(tmp_path: Path) -> None:
    samples = torch.linspace(-32768, 32767, 50000).round()
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.numpy().astype("<i2").tobytes())
    torch.testing.assert_close(audio.read_wave(tmp_path / "a.wav"), samples[:47872] / 32768, rtol=0, atol=0)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return audio.music_tagger()


@pytest.fixture(scope="module")
def heard() -> torch.Tensor:
    return audio.log_mel(sum(audio.flute_and_drums()))


@pytest.fixture(scope="module")
def on_flute() -> torch.Tensor:
    """Where the flute is louder than the drums: the truth."""
    flute, drums = audio.flute_and_drums()
    return audio.log_mel(flute) > audio.log_mel(drums)


@pytest.mark.slow
@pytest.mark.skipif(not installed("musicnn"), reason="needs weights: pip install --no-deps musicnn==0.1.0")
class TestAudio:
    def test_the_network_computes_what_tensorflow_computes(self, network: nn.Module) -> None:
        time, band = torch.arange(187)[:, None], torch.arange(96)
        logits = network((1.5 + (time / 7).sin() + 0.5 * (band / 5).cos())[None, None])
        expected = (
            "-2.13657 -2.40697 -2.10186 -1.19431 -3.6469 -2.42813 -0.9087 -1.59424 -2.84956 -2.53409 -1.12029 -2.42165 "
            "-3.71786 -3.66571 -1.26724 -3.37684 -5.41556 -4.30328 -3.73242 -3.79922 -3.56714 -2.7191 -4.88983 "
            "-2.02178 -3.15638 -4.64113 -4.11724 -3.76028 -2.84803 -3.66079 -3.70946 -7.15768 -3.81461 -4.04549 "
            "-4.78973 -3.91699 -4.30427 -2.36548 -4.45953 -4.15307 -3.91781 -4.03922 -4.83814 -4.61725 -3.22492 "
            "-2.05677 -4.49401 -2.69289 -4.23286 -4.37852"
        )
        torch.testing.assert_close(logits[0].detach(), torch.tensor([*map(float, expected.split())]), rtol=0, atol=1e-4)

    def test_it_hears_what_librosa_computes(self) -> None:
        time = torch.arange(187 * 256, dtype=torch.float64) / 16000
        chirp = 0.5 * (2 * torch.pi * (200 * time + 300 * time**2)).sin()
        expected = torch.tensor(
            [
                [4.14777, 3.15588, 1.83006, 1.11178, 0.57255, 0.20636, 0.06367, 0.02213],
                [0.05568, 5.99489, 0.01544, 0.00019, 1e-05, 0.0, 0.0, 0.0],
                [0.00045, 0.58836, 0.47141, 0.00098, 2e-05, 0.0, 0.0, 0.0],
                [2e-05, 0.00511, 6.06769, 0.00387, 2e-05, 0.0, 0.0, 0.0],
                [0.0, 1e-05, 0.03601, 0.0263, 0.0, 0.0, 0.0, 0.0],
            ]
        )
        torch.testing.assert_close(audio.log_mel(chirp.float())[:81:20, ::12], expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("tag", ["flute", "techno"])
    def test_contributions_and_biases_add_up_to_the_logit(
        self, network: nn.Module, heard: torch.Tensor, tag: str
    ) -> None:
        target = audio.TAGS.index(tag)
        cav = LayerCAV(network, list(audio.DEPTHS), normalize=None)
        _, deltas = cav.attribute(heard[None, None], target=target, return_convergence_delta=True)
        assert max(float(delta.abs()) for delta in deltas) < 1e-4
        verification = verify(network, heard[None, None], target)
        assert verification.ok, verification
        assert abs(verification.delta) < 1e-4

    @pytest.mark.parametrize("rules", audio.RULES)
    def test_the_flute_raises_flute_and_the_drums_raise_techno_at_every_depth(
        self, network: nn.Module, heard: torch.Tensor, on_flute: torch.Tensor, rules: str
    ) -> None:
        for tag, sign in (("flute", 1), ("techno", -1)):
            for ratios in audio.contribution_maps(network, heard, tag, rules):
                flutes = F.interpolate(on_flute[None, None].float(), ratios.shape, mode="area")[0, 0] > 0.5
                assert sign * float(ratios[flutes].sum()) > 0 > sign * float(ratios[~flutes].sum())

    def test_silencing_what_is_red_lowers_the_score_most(
        self, network: nn.Module, heard: torch.Tensor, on_flute: torch.Tensor
    ) -> None:
        spectrograms = [heard * ~on_flute, heard, heard * on_flute]
        without_flute, whole, without_drums = audio.logits(network, spectrograms, "flute").tolist()
        assert without_flute < whole < without_drums
        without_flute, whole, without_drums = audio.logits(network, spectrograms, "techno").tolist()
        assert without_flute > whole > without_drums
        for tag in ("flute", "techno"):
            for ratios in audio.contribution_maps(network, heard, tag, "pinpoint"):
                red, blue, random = audio.check(network, heard, tag, ratios)
                assert red < 0
                assert red < random
                assert red < blue

    def test_silencing_takes_a_tenth_of_the_places_away(self) -> None:
        ratios = torch.arange(20.0).reshape(5, 4)
        left = audio.silenced(torch.ones(10, 8), ratios)
        assert left.sum() == 80 - 2 * 4
        assert not left[8:, 4:].any()
        assert not audio.silenced(torch.ones(10, 8), -ratios)[:2, :4].any()

    def test_the_script_says_what_it_hears_and_draws_it(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(audio, monkeypatch, "--output", str(tmp_path / "audio.png"))
        said = capsys.readouterr().out
        assert said.startswith("heard: flute 55%, techno 46%")
        assert "flute: logit +0.22; with the drums silenced +2.13, with the flute silenced -5.39" in said
        assert height(tmp_path / "audio.png") > 1000


SENTENCES = [
    ("Where does the score of this sentence come from?", ("eng", 0.99999779), ("fra", 2.0013144e-06)),
    ("Der schnelle braune Fuchs springt über den faulen Hund.", ("deu", 0.98589933), ("dan", 0.012998303)),
    ("Быстрая коричневая лиса прыгает через ленивую собаку", ("rus", 0.99192911), ("bel", 0.0069434489)),
    ("Ich habe heute the weather forecast seen", ("eng", 0.99797999), ("deu", 0.0020085645)),
    ("今天天气很好我们去公园吧", ("cmn", 0.99641931), ("jpn", 0.0031625891)),
]


def test_a_text_is_normalized_as_the_network_expects_it() -> None:
    assert text.normalized("  Well-known: It's 3 Écoles -- été!\n\n") == " well known its écoles été "


def test_a_package_that_is_absent_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"^there is no .*t50-langs\.js: npm install --no-save --ignore-scripts lande@1\.0\.10$"
    ):
        text.LanguageDetector(tmp_path)


def test_a_file_with_code_in_it_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "t50-langs.js").write_text('export default process.exit(1) || ["eng"];')
    with pytest.raises(ModelError, match=r"^cannot read the weights .*t50-langs\.js: "):
        text.LanguageDetector(tmp_path)


@pytest.fixture(scope="module")
def detector() -> text.LanguageDetector:
    return text.LanguageDetector(LANDE)


@pytest.mark.slow
@pytest.mark.skipif(not LANDE.exists(), reason="needs weights: npm install --no-save --ignore-scripts lande@1.0.10")
class TestText:
    @pytest.mark.parametrize(("sentence", "best", "second"), SENTENCES)
    def test_the_network_computes_what_its_own_runtime_computes(
        self, detector: text.LanguageDetector, sentence: str, best: tuple[str, float], second: tuple[str, float]
    ) -> None:
        chances = detector.model(detector.frequencies(text.normalized(sentence)))[0].softmax(0)
        order = chances.topk(2).indices.tolist()
        assert [detector.languages[index] for index in order] == [best[0], second[0]]
        torch.testing.assert_close(chances[order].detach(), torch.tensor([best[1], second[1]]), rtol=0, atol=1e-5)

    def test_contributions_and_biases_add_up_to_the_log_odds(self, detector: text.LanguageDetector) -> None:
        for sentence, (language, _), _ in SENTENCES:
            frequencies = detector.frequencies(text.normalized(sentence))
            target = detector.languages.index(language)
            for score in ("output", "log_odds"):
                cav = InputCAV(detector.model, normalize=None, score=score)
                _, delta = cav.attribute(frequencies, target=target, return_convergence_delta=True)
                assert float(delta.abs()) < 1e-3  # of terms of some hundreds
                verification = verify(detector.model, frequencies, target, score=score)
                assert verification.ok, verification

    def test_characters_share_what_the_ngrams_contributed(self, detector: text.LanguageDetector) -> None:
        sentence = text.normalized(SENTENCES[1][0])
        contributions = detector.contributions(sentence, "deu")
        shares = detector.on_characters(sentence, contributions)
        torch.testing.assert_close(shares.sum(), contributions.sum())
        words = dict(text.by_word(sentence, shares))
        assert list(words) == sentence.split()
        torch.testing.assert_close(sum(words.values()) + float(shares[0]), float(shares.sum()), rtol=1e-5, atol=1e-5)

    def test_every_logit_of_a_sure_answer_is_far_below_zero(self, detector: text.LanguageDetector) -> None:
        logits = detector.model(detector.frequencies(text.normalized(SENTENCES[1][0])))
        assert float(logits.detach().max()) < -800

    def test_leaving_a_word_out_changes_the_log_odds_by_what_it_contributed(
        self, detector: text.LanguageDetector
    ) -> None:
        mixed = text.normalized(text.EXAMPLE)
        for language, speaks_for, speaks_against in (("eng", "the", "ich"), ("deu", "ich", "the")):
            words = text.by_word(mixed, detector.on_characters(mixed, detector.contributions(mixed, language)))
            contributions = torch.tensor([contribution for _, contribution in words])
            assert words[int(contributions.argmax())][0] == speaks_for
            assert words[int(contributions.argmin())][0] == speaks_against
            whole = text.log_odds(detector, mixed, language)
            losses = [
                whole - text.log_odds(detector, text.without(mixed, index), language) for index in range(len(words))
            ]
            assert float(torch.corrcoef(torch.stack([contributions, torch.tensor(losses)]))[0, 1]) > 0.95

    def test_the_script_says_what_it_reads_and_draws_it(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(ROOT)
        run(text, monkeypatch, "--output", str(tmp_path / "text.png"))
        said = capsys.readouterr().out
        assert said.startswith("read: eng 99.8%, deu 0.2%")
        assert "raised: 'th' +3.73, 'the' +2.44" in said
        assert height(tmp_path / "text.png") > 200
        with pytest.raises(SystemExit):
            run(text, monkeypatch, "--languages", "xyz")
        assert "there is no language xyz: afr, ara," in capsys.readouterr().err


FILES = {
    "python": source_code.EXAMPLE,
    "c": b'#include <stdio.h>\n\nint main(void) {\n    printf("Hello\\n");\n    return 0;\n}\n',
    "markdown": b"# Title\n\nSome *text* with a [link](http://x.org).\n\n- one\n- two\n",
    "javascript": b"const fs = require('fs');\nfunction f(x) { return x => x + 1; }\nmodule.exports = { f };\n",
    "sql": b"SELECT name, age FROM people WHERE age > 30 ORDER BY name;",
    "html": b"<!DOCTYPE html>\n<html><body><p>Hello</p></body></html>",
    "rust": b'fn main() {\n    let x: i32 = 5;\n    println!("{}", x);\n}\n',
}


def test_a_file_is_divided_into_words_and_signs_without_loss() -> None:
    content = "if  x ==\t'naïve':\r\n    y\n".encode()
    pieces = source_code.words(content)
    assert b"".join(pieces) == content
    assert pieces[:4] == [b"if", b"  ", b"x", b" ="]
    shares = torch.arange(float(len(content)))
    assert source_code.by_word(pieces, shares)[:2].tolist() == [0 + 1, 2 + 3]
    assert source_code.overwritten([b"ab", b" cd", b"\n"], torch.tensor([0.0, 1.0, 2.0])) == b"ab xx\n"


def test_of_a_long_file_both_ends_are_seen() -> None:
    content = source_code.seen(b"  " + b"a" * 3000 + b"b" * 3000 + b"\n")
    assert content == b"a" * 1024 + b"b" * 1024
    assert source_code.padded(content).tolist() == [[*content]]


def test_a_short_file_is_seen_twice_without_white_space_where_it_begins_and_ends() -> None:
    assert source_code.seen(b"  ab\n") == b"  ab\n"
    assert source_code.padded(b"  ab\n").tolist() == [[*b"ab\n", *[256] * 2041, *b"  ab"]]


@pytest.fixture(scope="module")
def loaded() -> tuple[nn.Module, list[str]]:
    return source_code.file_types()


@pytest.mark.slow
@pytest.mark.skipif(not installed("magika") or not installed("onnx"), reason='needs weights: pip install ".[examples]"')
class TestSourceCode:
    @pytest.mark.parametrize("name", FILES)
    def test_the_network_finds_what_magika_finds(self, loaded: tuple[nn.Module, list[str]], name: str) -> None:
        magika = pytest.importorskip("magika").Magika()
        network, names = loaded
        chances = network(source_code.padded(source_code.seen(FILES[name])))[0].softmax(0).detach()
        found = magika.identify_bytes(FILES[name])
        assert names[int(chances.argmax())] == found.dl.label == name
        # Its graph takes variances as differences of squares, which costs digits where most of a file is padding.
        assert abs(float(chances.max()) - found.score) < 1e-3

    def test_in_double_precision_both_compute_the_same(self, loaded: tuple[nn.Module, list[str]]) -> None:
        onnx = pytest.importorskip("onnx")
        from onnx.reference import ReferenceEvaluator

        network, _ = loaded
        path = packaged("magika", "magika/models/standard_v3_3/model.onnx", source_code.INSTALL)
        model = onnx.load(path)
        for array in model.graph.initializer:
            if array.data_type == onnx.TensorProto.FLOAT:
                array.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(array).astype("f8"), array.name))
        for node in model.graph.node:
            if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.FLOAT:
                node.attribute[0].i = onnx.TensorProto.DOUBLE
            if node.op_type == "GlobalMaxPool":  # onnx's own evaluator takes pictures there, and nothing else
                node.op_type = "ReduceMax"
                node.attribute.extend(
                    [onnx.helper.make_attribute("axes", [2]), onnx.helper.make_attribute("keepdims", 1)]
                )
        tokens = torch.cat([source_code.padded(source_code.seen(content)) for content in FILES.values()])
        (expected,) = ReferenceEvaluator(model).run(None, {"bytes": tokens.numpy().astype("i4")})
        chances = network.double()(tokens).softmax(1).detach()
        network.float()
        torch.testing.assert_close(chances, torch.from_numpy(expected), rtol=0, atol=1e-6)

    def test_bytes_padding_and_biases_add_up_to_the_logit(self, loaded: tuple[nn.Module, list[str]]) -> None:
        network, names = loaded
        content, target = source_code.seen(FILES["python"]), names.index("python")
        data = source_code.padded(content)
        cav = LayerCAV(network, "embedding", normalize=None)
        places, delta = cav.attribute(data, target=target, return_convergence_delta=True)
        assert float(delta.abs()) < 1e-4
        verification = verify(network, data, target, layer="embedding")
        assert verification.ok, verification
        shares, padding = source_code.contributions(network, content, target)
        torch.testing.assert_close(float(shares.sum()) + padding, float(places.sum()), rtol=1e-5, atol=1e-4)

    @pytest.mark.parametrize("name", FILES)
    def test_overwriting_what_is_red_lowers_the_score_most(
        self, loaded: tuple[nn.Module, list[str]], name: str
    ) -> None:
        network, names = loaded
        content, target = source_code.seen(FILES[name]), names.index(name)
        pieces = source_code.words(content)
        shares, _ = source_code.contributions(network, content, target)
        red, blue, random = source_code.check(network, pieces, source_code.by_word(pieces, shares), target)
        assert red < 0
        assert red < random
        assert red < blue

    def test_the_script_says_what_it_reads_and_draws_it(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(source_code, monkeypatch, "--output", str(tmp_path / "code.png"))
        said = capsys.readouterr().out
        assert said.startswith("read: python 18.3, bazel 8.7")
        assert "python: logit +18.32 = +31.55 bytes -14.32 padding +1.09 biases" in said
        assert height(tmp_path / "code.png") > 300
        (tmp_path / "empty").write_text(" \n")
        with pytest.raises(SystemExit):
            run(source_code, monkeypatch, str(tmp_path / "empty"))
        assert "there is nothing in" in capsys.readouterr().err
