"""Larger pictures from small ones, holes filled, and the files they come from."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from PIL import Image

from ldm_lite import cli
from ldm_lite.conditioners import (
    BoxesConfig,
    InpaintingConfig,
    LabelsConfig,
    LowResConfig,
    SemanticMapConfig,
    TextConfig,
    TogetherConfig,
    build,
    widths,
)
from ldm_lite.config import InputError
from ldm_lite.data import Scenes
from ldm_lite.editing import inpainted, upscaled
from ldm_lite.inputs import colours, saved
from ldm_lite.latent import LatentDiffusion


def model(condition) -> LatentDiffusion:
    """f = 2, and twice more in the denoiser."""
    torch.manual_seed(0)
    config = replace(tiny.UNET, **({"vector": 0, "dropout": 0.0} | widths(condition)))
    whole = tiny.latent_diffusion(config)
    return LatentDiffusion(whole.first_stage, whole.denoiser, whole.diffusion, build(condition)).eval()


TEXT = TextConfig(width=6, depth=1, heads=2, head_channels=3, length=12)
TOLD = {
    "text": TEXT,
    "layout": BoxesConfig(("house", "pine"), width=6, depth=1, heads=2, head_channels=3, most=2, grid=5),
    "map": SemanticMapConfig(("sky", "sea"), f=2),
    "larger": LowResConfig(4, 2),
    "two": TogetherConfig((TEXT, LabelsConfig(("day", "night"), 6))),
    "hole": InpaintingConfig(channels=2, f=2),
    "told-hole": TogetherConfig((LabelsConfig(("day", "night"), 6), TEXT, InpaintingConfig(channels=2, f=2))),
}


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """A folder of one's own, with a model for each task, trained at 16 pixels, and files to tell them."""
    monkeypatch.chdir(tmp_path)
    for name, condition in TOLD.items():
        model(condition).save(name)
        (tmp_path / name / "metrics.json").write_text('{"size": 16}')
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (18, 22, 3), np.uint8)
    Image.fromarray(picture).save("a.png")
    Image.fromarray(picture).convert("RGBA").save("clear.png")
    (tmp_path / "mixed").mkdir()
    Image.fromarray(picture[:4, :4]).save("mixed/0.png")
    Image.fromarray(picture).convert("RGBA").save("mixed/1.png")
    (tmp_path / "cut").mkdir()
    Image.fromarray(picture[:4, :4]).save("cut/0.png")
    Image.fromarray(picture).save("cut/1.png")
    (tmp_path / "cut/1.png").write_bytes((tmp_path / "cut/1.png").read_bytes()[:-40])
    (tmp_path / "mixed-out").mkdir()
    Image.fromarray(picture).save("mixed-out/0.png")
    Image.fromarray(picture[:5, :4]).save("small.png")
    keep = np.full((18, 22), 255, np.uint8)
    keep[3:9, 10:] = 0
    Image.fromarray(keep).save("keep.png")
    Image.fromarray(keep // 2).save("grey.png")
    Image.fromarray(np.stack([0 * keep] * 3 + [keep], 2)).save("hole.png")  # black, and the hole is transparent
    for folder, array in (("pics", picture), ("holes", keep)):
        (tmp_path / folder).mkdir()
        Image.fromarray(array).save(f"{folder}/0.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to("keep.png")
    Image.fromarray(keep[:-1]).save("short.png")
    Image.fromarray(np.arange(16 * 24, dtype=np.uint8).reshape(16, 24) % 2).save("map.png")
    Image.fromarray(np.full((16, 24), 2, np.uint8)).save("unknown.png")
    Image.fromarray(np.zeros((16, 23), np.uint8)).save("odd.png")
    Image.fromarray(np.arange(16 * 24, dtype=np.uint8).reshape(16, 24) % 2 * 255).save("mask.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    pine = {"kind": "pine", "box": [0.1, 0.2, 0.5, 1]}
    for name, rows in {
        "boxes": [pine, {"kind": "house", "box": [0, 0, 1, 1]}],
        "outside": [{"kind": "pine", "box": [0.1, 0.2, 1.5, 1]}],
        "kind": [{"kind": "pin", "box": [0.1, 0.2, 0.5, 1]}],
        "three": [{"kind": "pine", "box": [0.1, 0.2, 0.5]}],
        "huge": [pine, {"kind": "pine", "box": [0, 0, 1, 10**400]}],
        "nan": [{"kind": "pine", "box": [0, 0, 1, float("nan")]}],
        "bools": [{"kind": "pine", "box": [False, False, True, True]}],
        "many": [pine] * 3,
        "dict": {"kind": "pine"},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


# In Python ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (5, 13)])
def test_a_picture_of_any_size_becomes_four_times_as_large(size):
    upscaler, low = model(TOLD["larger"]), torch.rand(2, 3, *size) * 2 - 1
    out = upscaled(upscaler, low, window=16, steps=2)
    assert out.shape == (2, 3, 4 * size[0], 4 * size[1]) and out.abs().max() <= 1
    assert not torch.equal(out, upscaled(upscaler, -low, window=16, steps=2))


def test_a_size_that_needs_no_edge_and_no_window_is_a_plain_sample():
    upscaler, low = model(TOLD["larger"]), torch.rand(2, 3, 4, 5) * 2 - 1
    assert torch.equal(
        upscaled(upscaler, low, window=20, steps=2), upscaler.sample({"low": low}, steps=2, size=(16, 20))
    )


def test_a_repeated_edge_is_cut_off_again():
    upscaler, low = model(TOLD["larger"]), torch.rand(1, 3, 3, 5) * 2 - 1
    wide = torch.cat([low, low[..., -1:]], 3)  # the unit is 4 pixels of the large picture, 1 of the small one
    assert upscaled(upscaler, wide, window=24, steps=2).shape[3] == 24
    assert upscaled(upscaler, low, window=24, steps=2).shape[3] == 20


@pytest.mark.parametrize("size", [(8, 12), (9, 11), (30, 21)])
def test_what_is_kept_is_exactly_as_it_was_and_the_hole_is_not_looked_at(size):
    filler, image = model(TOLD["hole"]), torch.rand(2, 3, *size) * 2 - 1
    mask = torch.ones(2, 1, *size)
    mask[:, :, 2:6, 3:9] = 0
    out = inpainted(filler, image, mask, window=16, steps=2)
    keep = mask.bool().expand_as(image)
    assert (
        out.shape == image.shape and torch.equal(out[keep], image[keep]) and not torch.equal(out[~keep], image[~keep])
    )
    other = torch.where(keep, image, torch.rand_like(image))
    assert torch.equal(inpainted(filler, other, mask, window=16, steps=2), out)


def test_a_large_picture_with_a_hole_is_encoded_by_windows(monkeypatch):
    filler, image, mask = model(TOLD["hole"]), torch.rand(2, 3, 24, 42) * 2 - 1, torch.ones(2, 1, 24, 42)
    mask[:, :, 2:6, 3:9] = 0
    sizes, encoder = [], filler.first_stage.encoder
    encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    inpainted(filler, image, mask, window=16, steps=1)
    assert set(sizes) == {(16, 16)}
    # what acts on each cell alone gives the latent of the whole
    monkeypatch.setattr(filler.first_stage, "encode", lambda x: F.avg_pool2d(x, 2))
    z = filler.encoded({"masked": image}, (8, 3))["masked_z"]
    torch.testing.assert_close(z, F.avg_pool2d(image, 2))


def test_one_mask_is_for_all_pictures_and_another_number_of_them_is_refused():
    filler, image = model(TOLD["hole"]), torch.rand(3, 3, 8, 12) * 2 - 1
    mask = torch.ones(1, 1, 8, 12)
    mask[..., 2:6, 3:9] = 0
    one, three = (inpainted(filler, image, mask.expand(n, -1, -1, -1), steps=1) for n in (1, 3))
    assert torch.equal(one, three)
    with pytest.raises(InputError, match=r"^mask: 2 masks, and 3 images; give one, or 3$"):
        inpainted(filler, image, mask.expand(2, -1, -1, -1))


def test_a_model_of_another_task_and_masks_that_cannot_be_are_refused():
    filler, image = model(TOLD["hole"]), torch.zeros(1, 3, 8, 8)
    with pytest.raises(InputError, match=r"^upscale: the model was not trained for it; scenes-upscale was$"):
        upscaled(filler, image)
    with pytest.raises(InputError, match=r"^inpaint: the model was not trained for it; scenes-inpaint was$"):
        inpainted(model(TOLD["larger"]), image, torch.ones(1, 1, 8, 8))
    with pytest.raises(InputError, match=r"^mask: \(8, 7\) is of another size than the image, \(8, 8\)$"):
        inpainted(filler, image, torch.ones(1, 1, 8, 7))
    with pytest.raises(InputError, match=r"^mask: has other values than 1, keep, and 0, fill"):
        inpainted(filler, image, torch.full((1, 1, 8, 8), 0.5))


def test_a_picture_is_saved_as_it_was_read(here):
    saved(colours(here / "a.png"), here / "b.png")
    assert np.array_equal(np.array(Image.open("a.png")), np.array(Image.open("b.png")))


def test_a_picture_is_read_upright_and_of_any_depth_as_a_dataset_reads_it(here):
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: 22 x 18 pixels show 18 x 22
    Image.open("a.png").save("turned.png", exif=turned)
    assert torch.equal(colours(here / "turned.png"), colours(here / "a.png").rot90(-1, (2, 3)))
    deep = (np.arange(18 * 22, dtype=np.uint16) * 165).reshape(18, 22)
    Image.fromarray(deep).save("deep.png")
    torch.testing.assert_close(
        colours(here / "deep.png")[0, 1], torch.from_numpy(deep / 32767.5 - 1).float(), atol=5e-3, rtol=0
    )


# On the command line ------------------------------------------------------------------------------------------------


def size(path) -> tuple[int, int]:
    return Image.open(path).size


def test_sample_is_told_a_prompt_boxes_or_a_map(here, capsys):
    line = ["-n", "2", "--steps", "2", "-o", "out.png"]
    assert cli.main(["sample", "text", "--prompt", "a house", "two pines", "--negative", "fog", *line]) == 0
    assert size("out.png") == (2 * 18 + 2, 20)
    assert cli.main(["sample", "layout", "--boxes", "boxes.json", "--size", "16", "24", *line]) == 0
    assert size("out.png") == (2 * 26 + 2, 20)
    assert cli.main(["sample", "map", "--map", "map.png", *line]) == 0  # as large as the map
    assert size("out.png") == (2 * 26 + 2, 20)
    assert "guidance 1" in capsys.readouterr().out.splitlines()[-1]
    assert cli.main(["sample", "text", "--prompt", "a house", "--size", "32", "20", "--window", "16", *line]) == 0
    assert size("out.png") == (2 * 22 + 2, 36)


def test_the_overlap_of_windows_is_what_is_asked_for(here):
    def drawn(name: str, *more: str) -> bytes:
        line = {"text": ["sample", "text", "--prompt", "a", "-n", "1", "--size", "32", "--window", "16", "-o", "b.png"]}
        line |= {"larger": ["upscale", "larger", "mixed/0.png", "b.png", "--window", "8"]}
        assert cli.main([*line[name], "--steps", "2", *more]) == 0
        return (here / "b.png").read_bytes()

    assert drawn("text") == drawn("text", "--overlap", "4") != drawn("text", "--overlap", "8")
    assert drawn("larger") == drawn("larger", "--overlap", "2") != drawn("larger", "--overlap", "4")
    assert (
        cli.main(["upscale", "larger", "small.png", "b.png", "--window", "32", "--overlap", "4", "--steps", "1"]) == 0
    )


def test_a_prompt_is_what_the_model_is_told(here):
    def drawn(*more: str) -> bytes:
        assert cli.main(["sample", "text", *more, "-n", "1", "--steps", "2", "-o", "out.png"]) == 0
        return (here / "out.png").read_bytes()

    one = drawn("--prompt", "a house")
    assert drawn("--prompt", "a house") == one != drawn("--prompt", "two pines")
    assert drawn("--prompt", "a house", "--negative", "fog") != one


def test_a_model_that_is_told_two_things_takes_a_scale_for_each(here, capsys):
    def drawn(*scales: str) -> bytes:
        line = ["sample", "two", "--prompt", "a house", "--label", "day", "-n", "1", "--steps", "2", "-o", "out.png"]
        assert cli.main([*line, "--guidance", *scales]) == 0
        assert capsys.readouterr().out.endswith(f"guidance {' '.join(scales)}\n")
        return (here / "out.png").read_bytes()

    assert drawn("3", "0.5") != drawn("3") != drawn("0.5", "3")


def test_a_layout_of_another_size_is_not_advised_windows_which_it_refuses(capsys):
    assert cli.main(["sample", "layout", "--boxes", "boxes.json", "--size", "18"]) == 2
    assert capsys.readouterr().err.endswith("not divisible by 4; take 16 x 16 or 20 x 20\n")


def test_upscale_and_inpaint_take_a_picture_or_a_folder(here, capsys):
    assert cli.main(["upscale", "larger", "small.png", "large.png", "--steps", "2"]) == 0
    assert size("large.png") == (16, 20) and "large.png: 16 x 20" in capsys.readouterr().out
    assert cli.main(["inpaint", "hole", "a.png", "keep.png", "filled.png", "--steps", "2"]) == 0
    before, after, keep = (np.array(Image.open(f)) for f in ("a.png", "filled.png", "keep.png"))
    assert (before[keep == 255] == after[keep == 255]).all() and (before[keep == 0] != after[keep == 0]).any()
    for folder, source in (("many", "a.png"), ("masks", "keep.png")):
        for i in range(2):
            (here / folder).mkdir(exist_ok=True)
            Image.open(source).save(f"{folder}/{i}.png")
    assert cli.main(["upscale", "larger", "many", "out", "--steps", "2", "--window", "16"]) == 0
    assert size("out/1.png") == (88, 72)
    assert cli.main(["inpaint", "hole", "many", "masks", "filled", "--steps", "2"]) == 0
    assert sorted(p.name for p in (here / "filled").iterdir()) == ["0.png", "1.png"]
    assert np.array_equal(np.array(Image.open("filled/0.png")), after)


def test_inpaint_tells_a_model_that_learned_more_what_the_picture_shows(here):
    def drawn(*more: str) -> bytes:
        line = ["inpaint", "told-hole", "a.png", "keep.png", "out.png", "--steps", "2", "--prompt", "a house", *more]
        assert cli.main(line) == 0
        return (here / "out.png").read_bytes()

    day = drawn("--label", "day")
    assert day == drawn("--label", "day", "--guidance", "1", "1") != drawn("--label", "night")
    guided = drawn("--label", "day", "--guidance", "3", "2")
    assert guided != day and guided != drawn("--label", "day", "--guidance", "3")
    assert drawn("--label", "day", "--guidance", "3", "--negative", "fog") != drawn("--label", "day", "--guidance", "3")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("map", {"miou"}), ("larger", {"psnr_to_image", "bicubic_psnr_to_image"}), ("hole", {"lpips_to_image"})],
)
def test_evaluate_judges_a_model_by_what_it_was_told(name, numbers, capsys):
    line = ["evaluate", name, "-n", "3", "--images", "3", "--steps", "2", "--data", "scenes"]
    # the segments of the scenes, for which the map's two names are too few
    if name == "map":
        model(SemanticMapConfig(Scenes.segment_names, f=2)).save("map")
    assert cli.main(line) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 3 and numbers <= {*found} and "guidance" not in found
    assert cli.main(line) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_sample_help_says_what_each_model_can_be_told(capsys):
    for name, words in (
        ("text", "text: --prompt."),
        ("layout", "layout: --boxes (house, pine)."),
        ("hole", "inpaint."),
    ):
        with pytest.raises(SystemExit):
            cli.main(["sample", name, "--help"])
        assert words in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["sample", "text"], "prompt: say what the picture shows"),
        (["sample", "text", "--prompt", ""], "prompt: is empty; say what the picture shows"),
        (["sample", "text", "--prompt", "x" * 10_000], "prompt: 10000 tokens, and the model reads 12"),
        (["sample", "text", "--prompt", "a \udcff"], "prompt: has bytes that are no UTF-8 text"),
        (["sample", "text", "--label", "night"], "label: text is told by --prompt"),
        (["sample", "map", "--map", "map.png", "--negative", "fog"], "negative: map takes no words"),
        (
            ["sample", "text", "--prompt", "a", "--negative", "fog", "--guidance", "1"],
            "negative: guidance 1 leads",
        ),
        (["sample", "text", "--prompt", "a", "--guidance", "2", "1"], "guidance: one scale is enough"),
        (["sample", "two", "--prompt", "a", "--guidance", "2", "1", "3"], "guidance: 3 scales, and 2 conditions"),
        (["sample", "layout"], "boxes: give a .json file with [{"),
        (["sample", "layout", "--boxes", "nowhere.json"], "nowhere.json: no such file"),
        (
            ["sample", "layout", "--boxes", "outside.json"],
            "outside.json: boxes: number 1 (0.1 0.2 1.5 1) is not",
        ),
        (["sample", "layout", "--boxes", "kind.json"], "kind.json: pin: no such kind of object; did you mean pine?"),
        (["sample", "layout", "--boxes", "three.json"], "three.json: box number 1 is not four numbers, x0 y0 x1 y1"),
        (["sample", "layout", "--boxes", "huge.json"], "huge.json: box number 2 is not four numbers, x0 y0 x1 y1"),
        (["sample", "layout", "--boxes", "nan.json"], "nan.json: box number 1 is not four numbers, x0 y0 x1 y1"),
        (["sample", "layout", "--boxes", "bools.json"], "bools.json: box number 1 is not four numbers, x0 y0 x1 y1"),
        (["sample", "layout", "--boxes", "many.json"], "many.json: boxes: 3, and the model was trained with at most 2"),
        (["sample", "layout", "--boxes", "dict.json"], "dict.json: is not a list such as [{"),
        (["sample", "map"], "map: give a picture whose pixels are numbers of segments: 0 sky, 1 sea"),
        (["sample", "map", "--map", "a.png"], "a.png: has colours (RGB); its pixels must be numbers: 0 sky, 1 sea"),
        (["sample", "map", "--map", "unknown.png"], "unknown.png: 2 is no segment; there are 0 sky, 1 sea"),
        (["sample", "map", "--map", "mask.png"], "mask.png: 255 is no segment; there are 0 sky, 1 sea"),
        (["sample", "map", "--map", "odd.png"], "odd.png: 16 x 23 pixels are not divisible by 2; make it 16 x 22"),
        (["sample", "map", "--map", "map.png", "--guidance", "4"], "guidance, rescale, interval: map is told nothing"),
        (["sample", "map", "--map", "map.png", "--size", "16"], "size: 16 x 16, and map.png is 16 x 24; leave"),
        (["sample", "larger"], "larger: is for ldm-lite upscale"),
        (["sample", "hole"], "hole: is for ldm-lite inpaint"),
        (["sample", "text", "--prompt", "a", "--size", "1", "2", "3"], "size: 1 2 3 is not one number of pixels"),
        (["sample", "text", "--prompt", "a", "--negative", "b \udcff"], "negative: has bytes that are no UTF-8 text"),
        (["sample", "text", "--prompt", "a", "--overlap", "4"], "overlap: of which windows? give --window too"),
        (["sample", "text", "--prompt", "a", "--window", "16", "--overlap", "3"], "overlap: 3 is not a multiple of 2"),
        (["upscale", "larger", "small.png", "b.png", "--overlap", "-5"], "overlap: -5 is below 0"),
        (["upscale", "larger", "small.png", "b.png", "--label", "day"], "label: larger is told a picture alone"),
        (["inpaint", "told-hole", "a.png", "keep.png", "b.png"], "label: say what the pictures show: --label with one"),
        (
            ["inpaint", "told-hole", "a.png", "keep.png", "b.png", "--label", "day", "night"],
            "label: 2 are given; give one, which is for all pictures",
        ),
        (["inpaint", "told-hole", "a.png", "keep.png", "b.png", "--label", "day"], "prompt: say what the picture"),
        (
            ["inpaint", "told-hole", "a.png", "keep.png", "b.png", "--label", "dayy", "--prompt", "a"],
            "dayy: no such",
        ),
        (["upscale", "larger", "small.png", "b.png", "--guidance", "2"], "guidance: larger is told a picture alone"),
        (["upscale", "larger", "small.png", "b.png", "--overlap", "3"], "overlap: 3 is not a multiple of 2 from 0"),
        (["inpaint", "hole", "a.png", "keep.png", "b.png", "--overlap", "16"], "overlap: 16 is not a multiple of 2"),
        (["upscale", "larger", "a.png"], "ldm-lite upscale needs a model, a picture or a folder, and where to write"),
        (["upscale", "hole", "a.png", "b.png"], "upscale: the model was not trained for it"),
        (["upscale", "larger", "clear.png", "b.png"], "clear.png: has an alpha channel; save it without"),
        (["upscale", "larger", "broken.png", "b.png"], "broken.png: cannot be read as a picture"),
        (["upscale", "larger", "nowhere.png", "b.png"], "nowhere.png: no such file"),
        (["upscale", "larger", "a.png", "b.txt"], "b.txt is not a .png, .jpg or .webp file"),
        (["upscale", "larger", "text", "b"], "text: holds no pictures"),
        (["upscale", "larger", ".", "."], "would be overwritten; give another place"),
        (["upscale", "larger", "a.png", "pics/../a.png"], "pics/../a.png: is read, and would be overwritten"),
        (["upscale", "larger", "cut", "mixed-out"], "cut/1.png: cannot be read as a picture"),
        (["upscale", "larger", "mixed", "mixed-out"], "mixed/1.png: has an alpha channel; save it without"),
        (["upscale", "larger", "a.png", "keep.png/b.png"], "keep.png/b.png: cannot be written"),
        (["upscale", "larger", "a.png", "folder.png"], "output: folder.png is a folder"),
        (["sample", "map", "--map", "map.png", "-o", "map.png"], "map.png: is read, and would be overwritten"),
        (["upscale", "larger", "small.png", "b.png", "--window", "10"], "window: 10 is not a multiple of 4"),
        (["inpaint", "hole", "a.png", "keep.png"], "ldm-lite inpaint needs a model, a picture, its mask"),
        (["inpaint", "hole", "a.png", "grey.png", "b.png"], "grey.png: has greys; make it black"),
        (["inpaint", "hole", "a.png", "hole.png", "b.png"], "hole.png: has an alpha channel; save it without"),
        (["inpaint", "hole", "a.png", "keep.png", "keep.png"], "keep.png: is read, and would be overwritten"),
        (["inpaint", "hole", "a.png", "keep.png", "link.png"], "link.png: is read, and would be overwritten"),
        (["inpaint", "hole", "pics", "holes", "holes"], "holes/0.png: is read, and would be overwritten"),
        (["inpaint", "hole", "a.png", "keep.png", "b.jpg"], "output: b.jpg is not a .png file"),
        (["inpaint", "hole", "a.png", "keep.png", "b.webp"], "output: b.webp is not a .png file"),
        (["inpaint", "hole", "a.png", "short.png", "b.png"], "short.png: is of another size than its picture (22 x 17"),
        (["inpaint", "hole", "a.png", ".", "b.png"], "a folder of masks goes with a folder of pictures"),
        (["inpaint", "hole", "clear.png", "keep.png", "b.png"], "clear.png: has an alpha channel"),
    ],
)
def test_a_mistake_is_one_line_and_overwrites_nothing(here, capsys, line, words):
    before = {p: p.read_bytes() for p in here.rglob("*") if p.is_file()}
    assert cli.main([*line, "--steps", "2"] if line[0] == "sample" else line) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("ldm-lite: ") and words in said[0], said
    assert {p: p.read_bytes() for p in here.rglob("*") if p.is_file()} == before
