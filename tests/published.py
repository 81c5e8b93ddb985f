"""The totals of the tensors in the published checkpoints, by the names of the presets."""

FIRST_STAGES = {
    "kl-f4": 55_312_063,
    "kl-f8": 83_653_863,
    "kl-f16": 69_610_963,
    "kl-f32": 103_880_131,
    "vq-f4": 55_322_782,
    "vq-f4-noattn": 53_219_486,
    "vq-f8": 67_717_295,
    "vq-f8-n256": 67_652_783,
    "vq-f16": 69_593_371,
}
DENOISERS = {
    "celebahq-ldm4": 274_056_163,
    "ffhq-ldm4": 274_056_163,
    "lsun-bedrooms-ldm4": 274_056_163,
    "lsun-churches-ldm8": 294_966_916,
    "cin256": 394_984_196,
    "cin256-v2": 400_920_579,
    "text2img256": 403_623_939,
    "txt2img-1p4b": 872_300_484,
    "sd-v1": 859_520_964,
    "layout2img256": 246_277_379,
    "semantic256": 215_229_315,
    "bsr-sr": 113_622_563,
    "inpainting": 387_245_827,
    "rdm768": 1_335_480_400,
}
