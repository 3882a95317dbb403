"""The paper's numbers (arXiv 2306.17842), recalled, not read again: check before quoting them."""

# ImageNet validation, 128x128 (its table of reconstruction and semantic relevance).
LAYERS_HEAD = ("layers", "words", "FID", "LPIPS", "CLIP score", "relative CLIP score")
LAYERS = (
    (1, 1, "", "", 0.188, 0.720),
    (2, 5, "", "", 0.187, 0.715),
    (3, 21, "", "", 0.182, 0.690),
    (4, 85, "", "", 0.171, 0.641),
    (5, 341, 9.49, 0.17, 0.160, 0.591),
    (6, 597, 4.41, 0.12, 0.158, 0.579),
)
# mini-ImageNet, mean accuracy in % over the seven settings of Frozen, answered by a language model.
FEWSHOT_HEAD = ("reader", "words an image", "2-way", "5-way")
FEWSHOT = (
    ("SPAE, PaLM 2", "5 (perhaps 21 for 5-way)", 77.74, 58.76),
    ("SPAE, GPT-3.5", "5", 69.51, 53.91),
    ("LQAE, GPT-3.5", "", 53.97, 29.04),
    ("Frozen", "", 51.3, 26.26),
)
# Directions alone: the numbers are not recalled.
ABLATIONS = {
    "a": "SAQ is better than RQ, in reconstruction and in semantic relevance",
    "b": "guidance makes words more relevant and costs reconstruction",
    "c": "few-shot classification reads the first 5 words, or 21; generation writes all 597 "
    "(that more words are worse for reading is not said)",
}
