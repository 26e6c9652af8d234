"""The colours of the report: a light and a dark value of each, one colour per role, safe for the colour-blind.

Plots are drawn in the light values. In the page each light value becomes the CSS variable of its name, so that a plot
follows the page's theme; therefore no two roles may share a light value.
"""

COLORS = {
    "page": ("#f6f7f9", "#0e1217"),
    "card": ("#fffffe", "#161b22"),
    "fg": ("#1b2027", "#e5e9ef"),
    "quiet": ("#57606b", "#9ba6b4"),
    "grid": ("#dfe3e8", "#2c343f"),
    "fused": ("#0072b2", "#58b2f0"),
    "other": ("#00788f", "#4fd0e4"),
    "eager": ("#b84a00", "#f79e55"),
    "compile": ("#963b87", "#e09ad6"),
    "reference": ("#6e6206", "#d2c250"),
    "library": ("#1c774b", "#5ecb9c"),
    "met": ("#00714f", "#46d3a4"),
    "missed": ("#b3261d", "#ff938a"),
}
LIGHT = {name: light for name, (light, _) in COLORS.items()}
assert len(set(LIGHT.values())) == len(LIGHT)

# The order of the variants, and the markers that distinguish them without colours.
MARKERS = {"fused": "o", "other": "P", "compile": "s", "eager": "D", "library": "^", "reference": "v"}


def role(variant: str, kind: str) -> str:
    """The colour of a variant: the fused ops have their own, and their other backends share another."""
    return "other" if kind == "fused" and variant != "fused" else kind
