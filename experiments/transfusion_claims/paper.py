"""The paper's numbers (arXiv 2408.11039), as its tables have them."""

# Columns: C4 perplexity, Wikipedia perplexity, Llama accuracy, CIDEr, FID, CLIP.
COLUMNS = ("C4 PPL", "Wiki PPL", "Llama acc", "CIDEr", "FID", "CLIP")
# sec. 4.3: 0.76B, linear codec, patches of 2.
ATTENTION = {
    "linear, causal": (10.4, 6.0, 51.4, 12.7, 61.3, 23.0),
    "linear, bidirectional": (10.4, 6.0, 51.7, 16.0, 20.3, 24.0),
    "U-Net, causal": (10.3, 5.9, 52.0, 23.3, 16.8, 25.3),
    "U-Net, bidirectional": (10.3, 5.9, 51.9, 25.4, 16.7, 25.4),
}
# sec. 4.2: 7B, 0.5T tokens; the last row is the share of Chameleon's FLOPs that Transfusion needs.
CHAMELEON = {
    "Transfusion": (7.72, 4.28, 61.5, 27.2, 16.8, 25.5),
    "Chameleon": (8.41, 4.69, 59.1, 18.0, 29.6, 24.3),
    "FLOPs to be level": (0.489, 0.526, 0.600, 0.218, 0.029, 0.319),
}
# sec. 4.3: 0.76B; patch, tokens of an image.
PATCHES = {
    "linear, 2x2, 256": (10.4, 6.0, 51.7, 16.0, 20.3, 24.0),
    "linear, 4x4, 64": (10.9, 6.3, 49.8, 14.3, 25.6, 22.6),
    "linear, 8x8, 16": (11.7, 6.9, 47.7, 11.3, 43.5, 18.9),
    "U-Net, 2x2, 256": (10.3, 5.9, 51.9, 25.4, 16.7, 25.4),
    "U-Net, 4x4, 64": (10.7, 6.2, 50.7, 29.9, 16.0, 25.7),
    "U-Net, 8x8, 16": (11.4, 6.6, 49.2, 29.5, 16.1, 25.2),
}
# sec. 4.3, U-Net, patches of 2: CIDEr, FID.
NOISE_COLUMNS = ("CIDEr", "FID")
NOISE = {
    "0.76B, no limit": (25.4, 16.7),
    "0.76B, limit 0.5": (29.4, 16.5),
    "7B, no limit": (33.7, 16.0),
    "7B, limit 0.5": (35.2, 15.7),
}
