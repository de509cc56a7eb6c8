"""The method of inseq gives what SequenceCAV gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from captum_cav import SequenceCAV
from tests.support.text_models import saved_gpt2

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("rules", ["attnlrp", "paper"])
@pytest.mark.filterwarnings("ignore")
def test_attributions_of_inseq_are_the_matrix(rules: str, tmp_path: Path) -> None:
    inseq = pytest.importorskip("inseq", reason="needs inseq")
    import transformers

    import captum_cav.inseq  # noqa: F401

    saved_gpt2(tmp_path)
    model = inseq.load_model(str(tmp_path), "cav", rules=rules)
    given = model.attribute("a cat", "a cat sat", attributed_fn="logit", show_progress=False)
    found = given.sequence_attributions[0].target_attributions.sum(-1).nan_to_num().T
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    expected = SequenceCAV(plain, tokenizer=tokenizer, rules=rules).attribute("a cat", " sat").contributions
    torch.testing.assert_close(found.float().cpu(), expected, atol=1e-5, rtol=1e-4)
