"""Text encoders of the transformers library, from small folders in its layout."""

import json
import logging

import pytest
import torch

transformers = pytest.importorskip("transformers")

from ldm_lite.conditioners import PretrainedText, PretrainedTextConfig, widths  # noqa: E402
from ldm_lite.config import InputError  # noqa: E402
from ldm_lite.diffusion import Diffusion, VariancePreserving  # noqa: E402
from ldm_lite.latent import LatentDiffusion  # noqa: E402
from ldm_lite.tokens import Words  # noqa: E402
from ldm_lite.training import DiffusionTask, TrainConfig  # noqa: E402

CAPTIONS = ["two pines", "a house on sand", ""]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """A CLIP text encoder and a BERT, 12 wide, with random weights and a few words."""
    root = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    clip = root / "clip"
    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    clip.mkdir()
    (clip / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (clip / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(clip / "vocab.json"), str(clip / "merges.txt")).save_pretrained(clip)
    small = {"hidden_size": 12, "intermediate_size": 16, "num_attention_heads": 3, "num_hidden_layers": 2}
    ends = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    config = transformers.CLIPTextConfig(vocab_size=len(words), max_position_embeddings=20, **ends, **small)
    transformers.CLIPTextModel(config).save_pretrained(clip)
    bert = root / "bert"
    bert.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "two", "pines", "a", "house", "on", "sand"]
    (bert / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(bert / "vocab.txt")).save_pretrained(bert)
    config = transformers.BertConfig(vocab_size=len(words), max_position_embeddings=20, **small)
    transformers.BertModel(config).save_pretrained(bert)
    return {"clip": str(clip), "bert": str(bert)}


def conditioner(folder: str, **other) -> PretrainedText:
    return PretrainedText(PretrainedTextConfig(folder, width=12, length=9, **other)).eval()


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_the_context_is_the_encoders_last_hidden_state(kind, folders):
    ours = conditioner(folders[kind])
    context = ours({"caption": CAPTIONS}).context
    assert context.shape == (3, 9, 12) and widths(ours.config) == {"context": 12}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind])
    model = {"clip": transformers.CLIPTextModel, "bert": transformers.BertModel}[kind].from_pretrained(folders[kind])
    rows = tokenizer(CAPTIONS, padding="max_length", max_length=9, truncation=True, return_tensors="pt")
    if kind == "clip":
        rows.pop("attention_mask")  # as Stable Diffusion calls it
    with torch.no_grad():
        torch.testing.assert_close(context.detach(), model.eval()(**rows).last_hidden_state)


def test_the_length_of_a_caption_does_not_change_what_a_masked_encoder_says_of_its_words(folders):
    ours = conditioner(folders["bert"])
    short = PretrainedText(PretrainedTextConfig(folders["bert"], width=12, length=4)).eval()
    batch = {"caption": ["two pines"]}
    torch.testing.assert_close(ours(batch).context[:, :4], short(batch).context)


def whole(folder: str, trained: bool) -> LatentDiffusion:
    from dataclasses import replace

    import tiny

    told = conditioner(folder, trained=trained)
    model = tiny.latent_diffusion(replace(tiny.UNET, vector=0, context=12))
    return LatentDiffusion(model.first_stage, model.denoiser, Diffusion(VariancePreserving(), "v"), told)


@pytest.mark.parametrize("trained", [False, True])
def test_a_frozen_encoder_stays_and_is_not_saved_and_a_trained_one_learns_and_is(trained, folders, tmp_path):
    model = whole(folders["clip"], trained)
    before = {k: v.clone() for k, v in model.conditioner.encoder.state_dict().items()}
    task = DiffusionTask(
        model, TrainConfig(steps=3, lr=0.01, warmup=0, batch=3, ema=0.0, precision="fp32"), dropout=0.3
    )
    for step in range(3):
        task.step({"image": torch.rand(3, 3, 8, 12) - 0.5, "caption": CAPTIONS}, step)
    changed = any(not torch.equal(v, before[k]) for k, v in model.conditioner.encoder.state_dict().items())
    assert changed == trained
    task.save(tmp_path)
    again = LatentDiffusion.load(tmp_path)
    assert any("encoder.text_model" in k or k.startswith("conditioner.") for k in again.state_dict()) == trained
    told = {"caption": CAPTIONS}
    settings = {"steps": 2, "size": (8, 12), "guidance": 2.0}
    assert torch.equal(again.sample(told, **settings), model.eval().sample(told, **settings))


def test_moving_the_model_moves_a_frozen_encoder_too(folders):
    model = whole(folders["clip"], False).to(torch.float64)
    assert next(model.conditioner.encoder.parameters()).dtype == torch.float64


def test_a_prompt_that_is_too_long_is_refused(folders):
    ours = conditioner(folders["bert"])
    assert ours.prompt("two pines") == "two pines"
    with pytest.raises(InputError, match=r"^prompt: 12 tokens, and the model reads 9; say it in fewer words$"):
        ours.prompt("two pines " * 5)


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_counting_a_long_prompts_tokens_says_nothing_besides(kind, folders, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders[kind], model_max_length=20)
    tokenizer.save_pretrained(tmp_path)
    ours, said = conditioner(folders[kind]), []
    ours.tokenizer = tokenizer
    words, listener = Words(str(tmp_path)), logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("transformers").addHandler(listener)
    try:
        assert ours.count("two pines " * 30) == len(words.encode("two pines " * 30)) > 20
        assert len(words.spans("two pines " * 30)) > 20
    finally:
        logging.getLogger("transformers").removeHandler(listener)
    assert said == []


def test_an_encoder_that_cannot_be_had_and_one_of_another_width_are_named(folders, tmp_path):
    with pytest.raises(InputError, match=rf"^encoder: {tmp_path} cannot be had \(.*\); give a folder in transformers'"):
        PretrainedText(PretrainedTextConfig(str(tmp_path)))
    with pytest.raises(InputError, match=r"^width: 768, and .*bert's tokens are 12 wide$"):
        PretrainedText(PretrainedTextConfig(folders["bert"]))
