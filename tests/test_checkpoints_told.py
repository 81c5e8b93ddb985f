"""What the original's models are told, read from its files and written to them: text, layouts, maps and pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from test_checkpoints import assert_same_model, denoiser, peer, stage

from ldm_lite import checkpoints
from ldm_lite.autoencoder import AutoencoderConfig
from ldm_lite.checkpoints import load_compvis, load_diffusers, save_compvis, save_diffusers, translated
from ldm_lite.condition import Condition
from ldm_lite.conditioners import (
    Boxes,
    BoxesConfig,
    InpaintingConfig,
    LabelsConfig,
    LowResConfig,
    PretrainedTextConfig,
    SemanticMapConfig,
    Text,
    TextConfig,
    TogetherConfig,
    build,
    widths,
)
from ldm_lite.config import InputError, read, write
from ldm_lite.diffusion import Diffusion, VariancePreserving
from ldm_lite.latent import LatentDiffusion
from ldm_lite.layers import TokenEncoder
from ldm_lite.presets import PAPER, UNETS
from ldm_lite.tokens import learned
from ldm_lite.unet import UNetConfig

MERGES = learned(["two pines", "two boats at dawn", "pines at dawn"], 300)
TOLD = {  # heads of 64 channels and so on, as the original's, where its files do not say
    "text": TextConfig(width=24, depth=2, heads=2, head_channels=7, length=9, vocabulary=300, merges=MERGES),
    "layout": BoxesConfig(("house", "pine"), width=20, depth=1, heads=3, head_channels=5, most=4, grid=7, crop=True),
    "map": SemanticMapConfig(("sky", "sea", "sand"), f=2, channels=3),
    "low": LowResConfig(2, f=2, degradation="bsr"),
    "hole": InpaintingConfig(channels=3, f=2),
}
BATCH = {
    "caption": ["two pines at dawn", ""],
    "boxes": [torch.tensor([[0.1, 0.2, 0.5, 0.9]]), torch.zeros(0, 4)],
    "box_labels": [torch.tensor([1]), torch.zeros(0, dtype=torch.long)],
    "segmentation": torch.arange(2 * 12 * 16).view(2, 12, 16) % 3,
    "low": torch.linspace(-1, 1, 2 * 3 * 6 * 8).view(2, 3, 6, 8),
    "masked_z": torch.linspace(-1, 1, 2 * 3 * 6 * 8).view(2, 3, 6, 8),
    "mask": torch.arange(2 * 12 * 16).view(2, 1, 12, 16) % 5 > 1,
}


def told_model(condition, seed: int = 0) -> LatentDiffusion:
    """f = 2, latents of 3 channels; every weight random."""
    torch.manual_seed(seed)
    unet = UNetConfig(channels=3, width=128, mult=(1, 2), blocks=1, attend_at=(2,), heads=2, **widths(condition))
    first = stage(AutoencoderConfig(3, mult=(1, 1), blocks=1, bottleneck="vq", mid_attention=False), 1.0)
    return LatentDiffusion(first, denoiser(unet), Diffusion(VariancePreserving(), "eps"), build(condition)).eval()


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("file", ["model.ckpt", "model.safetensors"])
def test_a_model_that_is_told_something_comes_back_from_the_original_names(kind, file, tmp_path):
    model = told_model(TOLD[kind])
    save_compvis(model, tmp_path / file)
    again = load_compvis(tmp_path / file, model.denoiser.config, condition=TOLD[kind])
    assert_same_model(again, model)
    for door in ("context", "concat"):
        ours, theirs = getattr(model.conditioner(BATCH), door), getattr(again.conditioner(BATCH), door)
        assert (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs))
    assert any(getattr(model.conditioner(BATCH), door) is not None for door in ("context", "concat"))


def embedder(width: int, depth: int, length: int, vocabulary: int, inner: int) -> dict[str, list[int]]:
    """The published names of a BERTEmbedder, below cond_stage_model.transformer., and their shapes."""
    names = {"token_emb.weight": [vocabulary, width], "pos_emb.emb.weight": [length, width]}
    for i in range(depth):
        attention, forward = f"attn_layers.layers.{2 * i}", f"attn_layers.layers.{2 * i + 1}"
        for layer in (attention, forward):
            names |= {f"{layer}.0.weight": [width], f"{layer}.0.bias": [width]}
        names |= {f"{attention}.1.to_{k}.weight": [inner, width] for k in "qkv"}
        names |= {f"{attention}.1.to_out.weight": [width, inner], f"{attention}.1.to_out.bias": [width]}
        names |= {f"{forward}.1.net.0.0.weight": [4 * width, width], f"{forward}.1.net.0.0.bias": [4 * width]}
        names |= {f"{forward}.1.net.2.weight": [width, 4 * width], f"{forward}.1.net.2.bias": [width]}
    names |= {"norm.weight": [width], "norm.bias": [width]}
    return names | {"to_logits.weight": [vocabulary, width], "to_logits.bias": [vocabulary]}


PUBLISHED = {  # the embedders of the released models
    "text2img256": (640, 32, 77, 30_522, 512),
    "txt2img-1p4b": (1280, 32, 77, 30_522, 512),
    "layout2img256": (512, 16, 92, 8192, 512),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_encoder_of_a_published_model_has_its_names_and_shapes(name):
    condition = checkpoints._published_condition(name)
    with torch.device("meta"):
        conditioner = build(replace(condition, names=("a", "b")) if name == "layout2img256" else condition)
        out = checkpoints._conditioner_out(conditioner)
    expected = {f"transformer.{key}": shape for key, shape in embedder(*PUBLISHED[name]).items()}
    assert {key: list(value.shape) for key, value in out.items()} == expected


def test_the_embedder_computes_what_diffusers_port_of_it_computes():
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    torch.manual_seed(0)
    ours = TokenEncoder(31, 7, 24, 3, 8, 5).eval()
    for p in ours.parameters():
        torch.nn.init.normal_(p, std=0.3)
    config = LDMBertConfig(
        vocab_size=31,
        max_position_embeddings=7,
        encoder_layers=3,
        encoder_ffn_dim=96,
        encoder_attention_heads=8,
        head_dim=5,
        d_model=24,
        pad_token_id=0,
    )
    theirs = LDMBertModel(config).eval()
    state = translated(ours, "compvis")  # renamed below as diffusers' conversion script does
    layer = lambda k: f"attn_layers.layers.{k}"
    names = {"embed_tokens.weight": "token_emb.weight", "embed_positions.weight": "pos_emb.emb.weight"}
    names |= {f"layer_norm.{w}": f"norm.{w}" for w in ("weight", "bias")}
    for i in range(3):
        names |= {f"layers.{i}.self_attn.{k}_proj.weight": f"{layer(2 * i)}.1.to_{k}.weight" for k in "qkv"}
        for w in ("weight", "bias"):
            names |= {
                f"layers.{i}.self_attn.out_proj.{w}": f"{layer(2 * i)}.1.to_out.{w}",
                f"layers.{i}.self_attn_layer_norm.{w}": f"{layer(2 * i)}.0.{w}",
                f"layers.{i}.fc1.{w}": f"{layer(2 * i + 1)}.1.net.0.0.{w}",
                f"layers.{i}.fc2.{w}": f"{layer(2 * i + 1)}.1.net.2.{w}",
                f"layers.{i}.final_layer_norm.{w}": f"{layer(2 * i + 1)}.0.{w}",
            }
    missing, unknown = theirs.model.load_state_dict({a: state[b] for a, b in names.items()}, strict=False)
    assert not unknown and len(names) == len(state) and all("position_ids" in name for name in missing)
    tokens = torch.arange(14).view(2, 7) * 5 % 31
    with torch.no_grad():
        expected = theirs(tokens, position_ids=torch.arange(7)[None]).last_hidden_state
        torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=2e-6)


def test_a_published_name_says_what_the_model_is_told(tmp_path, monkeypatch):
    """Heads, grid and the number of boxes are in no tensor; kinds and segments without names are numbers."""
    for kind, name, names in (("layout", "layout2img256", 49), ("map", "semantic256", 3), ("low", "bsr-sr", 0)):
        condition = replace(TOLD[kind], names=()) if names else TOLD[kind]
        if kind != "layout":
            condition = replace(condition, f=8)  # as large as the first stage makes it, whatever the recipe's
        own = {"names": tuple(map(str, range(names)))} if names else {}
        own |= {"null": False} if kind == "layout" else {}  # every layout was told
        model = told_model(replace(TOLD[kind], **own))
        told = {"boxes": [[[0.1, 0.2, 0.5, 0.9]]], "box_labels": [[1]]}
        assert kind != "layout" or model.eval().conditioner.blank(told) is told
        monkeypatch.setitem(UNETS, name, model.denoiser.config)
        monkeypatch.setitem(PAPER, name, replace(PAPER[name], condition=condition))
        save_compvis(model, tmp_path / "model.ckpt")
        assert_same_model(load_compvis(tmp_path / "model.ckpt", name), replace_distance(model, PAPER[name].distance))
    named = load_compvis(tmp_path / "model.ckpt", "bsr-sr")
    assert named.conditioner.config.degradation == "bsr"


def test_published_texts_are_of_berts_words():
    """The recipe to train text2img256 learns byte pairs in their place: there is nothing to download then."""
    for name in ("text2img256", "txt2img-1p4b"):
        assert checkpoints._published_condition(name).tokenizer == "bert-base-uncased"
    assert not PAPER["text2img256"].condition.tokenizer


def replace_distance(model: LatentDiffusion, distance: str) -> LatentDiffusion:
    model.diffusion = replace(model.diffusion, distance=distance)
    return model


def test_labels_name_the_kinds_of_a_layout_and_the_segments_of_a_map(tmp_path):
    for kind, names in (("layout", ("cat", "dog")), ("map", ("a", "b", "c"))):
        save_compvis(told_model(TOLD[kind]), tmp_path / "model.ckpt")
        config = told_model(TOLD[kind]).denoiser.config
        unnamed = replace(TOLD[kind], names=())
        assert load_compvis(tmp_path / "model.ckpt", config, labels=names, condition=unnamed).conditioner.names == names


@pytest.mark.parametrize("name", ["txt2img-1p4b", "sd-v1"])
def test_the_scale_of_a_published_model_that_has_it_in_its_yaml_is_known(name, tmp_path, monkeypatch):
    model = told_model(TOLD["text"])
    model.first_stage = stage(AutoencoderConfig(3, mult=(1, 1), blocks=1, mid_attention=False), 0.18215)
    monkeypatch.setitem(UNETS, name, model.denoiser.config)
    save_compvis(model, tmp_path / "model.ckpt")
    state = torch.load(tmp_path / "model.ckpt")["state_dict"]
    del state["scale_factor"]
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    again = load_compvis(tmp_path / "model.ckpt", name, condition=TOLD["text"])
    assert float(again.first_stage.scale) == pytest.approx(0.18215)
    with pytest.raises(InputError, match="scale_factor is missing"):
        load_compvis(tmp_path / "model.ckpt", model.denoiser.config, condition=TOLD["text"])


# Words of the transformers library ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> str:
    """A tokenizer in the layout of bert-base-uncased."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "two", "pine", "##s", "on", "sand", "ca", "##ct", "##us"]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    "caption, tokens",
    [
        ("two pines on sand", [2, 5, 6, 7, 8, 9, 3, 0, 0]),
        ("Two CACTUS", [2, 5, 10, 11, 12, 3, 0, 0, 0]),
        ("", [2, 3, 0, 0, 0, 0, 0, 0, 0]),
        ("two " * 20, [2, 5, 5, 5, 5, 5, 5, 5, 3]),  # cut as the original cuts: the end stays
    ],
)
def test_words_are_tokenized_as_the_original_does(caption, tokens, bert):
    text = Text(replace(TOLD["text"], tokenizer=bert, vocabulary=13))
    assert text.tokens.row(caption, 9) == tokens
    expected = text.encoder(torch.tensor([tokens]))
    assert torch.equal(text({"caption": [caption]}).context, expected)


def test_the_places_of_a_word_are_its_pieces(bert):
    text = Text(replace(TOLD["text"], tokenizer=bert, vocabulary=13))
    assert text.places("two cactus on sand", "cactus") == [2, 3, 4]
    assert text.places("Two pines", "pines") == [2, 3]


def test_a_text_model_with_words_of_its_own_round_trips_without_them(tmp_path):
    """The words are had when they are needed: weights can be read where no tokenizer is."""
    condition = replace(TOLD["text"], tokenizer=str(tmp_path / "nowhere"), vocabulary=13, merges=())
    model = told_model(condition)
    save_compvis(model, tmp_path / "model.ckpt")
    again = load_compvis(tmp_path / "model.ckpt", model.denoiser.config, condition=condition)
    assert_same_model(again, model)
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"^tokenizer: .*nowhere cannot be had"):
        again.conditioner(BATCH)


def test_words_can_be_had_from_a_folder(bert, tmp_path):
    condition = replace(TOLD["text"], tokenizer=str(tmp_path / "nowhere"), vocabulary=13, merges=())
    model, path = told_model(condition), tmp_path / "model.ckpt"
    save_compvis(model, path)
    again = load_compvis(path, model.denoiser.config, condition=condition, encoder=bert)
    assert again.conditioner.config == replace(condition, tokenizer=bert)
    assert again.conditioner(BATCH).context.shape == (2, 9, condition.width)
    with pytest.raises(InputError, match=r"^encoder: nowhere is no folder"):
        load_compvis(path, model.denoiser.config, condition=condition, encoder="nowhere")
    save_compvis(model := told_model(TOLD["hole"]), path)
    with pytest.raises(InputError, match=r"^encoder: .*model.ckpt reads no captions"):
        load_compvis(path, model.denoiser.config, condition=TOLD["hole"], encoder=bert)


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        max_position_embeddings=9,
        hidden_size=12,
        intermediate_size=16,
        num_attention_heads=3,
        num_hidden_layers=2,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    torch.manual_seed(0)
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return str(folder)


def test_stable_diffusions_encoder_is_its_own_where_the_file_has_no_other(clip, tmp_path):
    condition = PretrainedTextConfig(clip, width=12, length=9)
    model, path = told_model(condition), tmp_path / "model.ckpt"
    save_compvis(model, path)
    state = torch.load(path)["state_dict"]
    names = [name for name in state if name.startswith("cond_stage_model.")]
    assert "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight" in names
    # older versions of transformers kept the numbers of the places in a file
    old = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(9)[None]}
    torch.save({"state_dict": state | old}, path)
    again = load_compvis(path, model.denoiser.config, condition=condition)
    assert again.conditioner.config == condition
    elsewhere = replace(condition, encoder="openai/clip-vit-large-patch14")
    assert load_compvis(path, model.denoiser.config, condition=elsewhere, encoder=clip).conditioner.config == condition
    context = model.conditioner(BATCH).context
    assert torch.equal(again.conditioner(BATCH).context, context)

    changed = {name: state[name] + 0.1 * torch.randn_like(state[name]) for name in names}
    torch.save({"state_dict": state | changed}, path)
    other = load_compvis(path, model.denoiser.config, condition=condition)
    assert other.conditioner.config.trained  # so that it is saved with the model
    assert (other.conditioner(BATCH).context - context).abs().max() > 0.01
    save_compvis(other, tmp_path / "other.ckpt")
    kept = torch.load(tmp_path / "other.ckpt")["state_dict"]
    assert all(torch.equal(kept[name], changed[name]) for name in names)

    del changed[names[3]]
    torch.save({"state_dict": {k: v for k, v in (state | changed).items() if k != names[3]}}, path)
    with pytest.raises(InputError, match=r"cond_stage_model.transformer.* is not of the encoder"):
        load_compvis(path, model.denoiser.config, condition=condition)


def test_the_first_stage_once_more_is_the_conditioner_of_inpainting_and_another_is_refused(tmp_path):
    model, path = told_model(TOLD["hole"]), tmp_path / "model.ckpt"
    save_compvis(model, path)
    state = torch.load(path)["state_dict"]
    again = {
        k.replace("first_stage_", "cond_stage_"): v for k, v in state.items() if k.startswith("first_stage_model.")
    }
    torch.save({"state_dict": state | again}, path)
    assert_same_model(load_compvis(path, model.denoiser.config, condition=TOLD["hole"]), model)
    torch.save({"state_dict": state | {name: value + 1 for name, value in again.items()}}, path)
    with pytest.raises(InputError, match=r"cond_stage_model.* has no place in InpaintingConfig"):
        load_compvis(path, model.denoiser.config, condition=TOLD["hole"])


# diffusers' pipelines -----------------------------------------------------------------------------------------------

UNET = UNetConfig(channels=3, width=128, mult=(1, 2), blocks=1, attend_at=(2,), head_channels=64)


def pipeline(kind: str, folder, unet: UNetConfig, **more):
    """A pipeline of diffusers with random weights, which has written its folder; f = 2."""
    diffusers = pytest.importorskip("diffusers")
    first = stage(AutoencoderConfig(3, mult=(1, 1), blocks=1, bottleneck="vq", mid_attention=False), 1.0)
    for part, name in ((first, "first"), (denoiser(unet), "unet")):
        save_diffusers(part, folder / "parts" / name)
    parts = {"unet": peer(folder / "parts" / "unet")}
    parts["vae" if kind == "StableDiffusionPipeline" else "vqvae"] = peer(folder / "parts" / "first")
    betas = {"beta_start": 0.0015, "beta_end": 0.0155, "beta_schedule": "scaled_linear"}
    scheduler = diffusers.DDIMScheduler(**betas, clip_sample=False, steps_offset=1)
    made = getattr(diffusers, kind)(**parts, scheduler=scheduler, **more)
    made.save_pretrained(folder / "theirs")
    return made


def assert_the_same_parts(model: LatentDiffusion, theirs, concat=None, context=None) -> None:
    z, clock = torch.randn(2, 3, 6, 8), torch.tensor([3.0, 641.0])
    with torch.no_grad():
        seen = z if concat is None else torch.cat([z, concat], 1)
        expected = theirs.unet(seen, clock, *([] if context is None else [context])).sample
        torch.testing.assert_close(model.denoiser(z, clock, Condition(context, concat)), expected, rtol=0, atol=1e-5)
        first = getattr(theirs, "vqvae", None) or theirs.vae
        torch.testing.assert_close(model.first_stage.decode(z), first.decode(z).sample, rtol=1e-5, atol=2e-5)
    assert model.diffusion.schedule == VariancePreserving(end=0.0155)


def test_diffusers_super_resolution_is_told_the_small_picture(tmp_path):
    theirs = pipeline("LDMSuperResolutionPipeline", tmp_path, replace(UNET, concat=3))
    model, low = load_diffusers(tmp_path / "theirs"), torch.rand(2, 3, 6, 8) * 2 - 1
    assert (model.conditioner.config.factor, model.conditioner.config.f) == (2, 2)
    concat = model.conditioner({"low": low}).concat
    assert torch.equal(concat, low)
    assert_the_same_parts(model, theirs, concat=concat)
    write(tmp_path / "theirs/unet/config.json", read(tmp_path / "parts/unet/config.json") | {"in_channels": 7})
    with pytest.raises(InputError, match=r"conv_in.weight is \(128, 6, 3, 3\); \(128, 7, 3, 3\) is needed"):
        load_diffusers(tmp_path / "theirs")
    save_diffusers(denoiser(replace(UNET, concat=2)), tmp_path / "theirs/unet")
    said = r"LDMSuperResolutionPipeline needs \{'concat': 3\} of it, and it has \{'concat': 2\}"
    with pytest.raises(InputError, match=said):
        load_diffusers(tmp_path / "theirs")


def test_diffusers_text_to_image_is_told_by_its_own_encoder_and_words(tmp_path):
    transformers = pytest.importorskip("transformers")
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\ntwo\npines\ndawn\n")
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    config = {"vocab_size": 8, "max_position_embeddings": 9, "encoder_layers": 2, "encoder_ffn_dim": 96, "head_dim": 7}
    torch.manual_seed(0)
    bert = LDMBertModel(LDMBertConfig(**config, encoder_attention_heads=2, d_model=24, init_std=0.3)).eval()
    unet = replace(UNET, head_channels=None, heads=2, context=24)
    theirs = pipeline("LDMTextToImagePipeline", tmp_path, unet, bert=bert, tokenizer=tokenizer)
    model = load_diffusers(tmp_path / "theirs")
    captions = ["two pines", ""]
    ids = tokenizer(captions, padding="max_length", max_length=9, truncation=True, return_tensors="pt").input_ids
    context = model.conditioner({"caption": captions}).context
    torch.testing.assert_close(context, bert(ids)[0], rtol=0, atol=1e-5)
    assert_the_same_parts(model, theirs, context=context.detach())
    model.save(tmp_path / "ours")
    assert_same_model(LatentDiffusion.load(tmp_path / "ours"), model)


def test_stable_diffusion_s_folder_is_told_by_the_encoder_in_it(clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    encoder, words = transformers.CLIPTextModel.from_pretrained(clip), transformers.CLIPTokenizer.from_pretrained(clip)
    unet = replace(UNET, head_channels=None, heads=2, context=12)
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    theirs = pipeline("StableDiffusionPipeline", tmp_path, unet, text_encoder=encoder, tokenizer=words, **none)
    model, captions = load_diffusers(tmp_path / "theirs"), ["abc", ""]
    ids = words(captions, padding="max_length", max_length=9, truncation=True, return_tensors="pt").input_ids
    context = model.conditioner({"caption": captions}).context
    torch.testing.assert_close(context, encoder(ids).last_hidden_state, rtol=0, atol=1e-5)
    assert_the_same_parts(model, theirs, context=context.detach())


# Bad input ----------------------------------------------------------------------------------------------------------


def test_a_conditioner_that_does_not_fit_is_refused_by_name(tmp_path):
    model, path = told_model(TOLD["text"]), tmp_path / "model.ckpt"
    save_compvis(model, path)
    config = model.denoiser.config
    with pytest.raises(InputError, match=r"cond_stage_model.transformer.token_emb.weight: say in condition"):
        load_compvis(path, config)
    with pytest.raises(InputError, match=r"condition: SemanticMapConfig needs \{'concat': 3\} of the denoiser"):
        load_compvis(path, config, condition=TOLD["map"])
    with pytest.raises(InputError, match=r"attn_layers.layers.4.0.weight is missing \(13 of 43"):
        load_compvis(path, config, condition=replace(TOLD["text"], depth=3))
    with pytest.raises(InputError, match=r"pos_emb.emb.weight is \(9, 24\); \(8, 24\) is needed"):
        load_compvis(path, config, condition=replace(TOLD["text"], length=8))

    model = told_model(TOLD["map"])
    save_compvis(model, path)
    state = torch.load(path)["state_dict"]
    torch.save({"state_dict": state | {"cond_stage_model.more": torch.zeros(1)}}, path)
    with pytest.raises(InputError, match=r"channel_mapper.weight alone is needed"):
        load_compvis(path, model.denoiser.config, condition=TOLD["map"])
    with pytest.raises(InputError, match=r"cond_stage_model.channel_mapper.weight has no place in LowResConfig"):
        load_compvis(path, model.denoiser.config, condition=TOLD["low"])
    torch.save({"state_dict": state}, path)
    with pytest.raises(InputError, match=r"channel_mapper.weight is \(3, 3, 1, 1\); \(3, 2, 1, 1\) is needed"):
        load_compvis(path, model.denoiser.config, condition=replace(TOLD["map"], names=("a", "b")))


@pytest.mark.parametrize(
    "condition, says",
    [
        (TogetherConfig((TOLD["map"], TOLD["low"])), "Together: has no names in the original"),
        (LabelsConfig(("a", "b"), 6, "vector"), "Labels as vector: has no names in the original"),
        (
            BoxesConfig(("a", "b"), width=6, most=2, grid=5, joined=True),
            "Boxes with joined: has no names in the original",
        ),
    ],
)
def test_what_the_original_cannot_be_told_is_not_written(condition, says, tmp_path):
    with pytest.raises(InputError, match=says):
        save_compvis(told_model(condition), tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


def test_boxes_of_a_published_layout_may_have_any_number_for_a_kind():
    condition = replace(checkpoints._published_condition("layout2img256"), names=tuple(map(str, range(8191))), depth=1)
    boxes = Boxes(condition).eval()
    context = boxes({"boxes": [torch.tensor([[0.0, 0.0, 1.0, 1.0]])], "box_labels": [torch.tensor([8190])]}).context
    assert context.shape == (1, 92, 512)
