from ..opinfo import CHECKED_LAYOUTS, OpInfo, each, layouts


def sample(draw, shape):
    return {"x": draw.normal(*shape)}


def generate(c, draw):
    return sample(draw, (c.batch(), c.size(64)))


def aot(of):
    yield of.work("square", (64, 512), (of(64, 512),), 64 * 512)


INFO = OpInfo(
    "square",
    outputs=("y",),
    sample=sample,
    rows={**each("shape", ((1,), (3, 65), (0, 4), (2, 3, 1025)), "shape"), **layouts(shape=(4, 5, 7))},
    generate=generate,
    checked=(*CHECKED_LAYOUTS, "shape*"),
    file="square",
    aot=aot,
    small={"shape": (2, 3)},
    compiled=({"shape": (2, 3)}, {"shape": (4, 5)}),
    crowded=(),
    gradchecked={"plain": {"shape": (2, 3)}},
)
