"""For mkdocs: pages from outside docs/, equations as MathML, a look at what was built."""

import importlib.util
import re
from pathlib import Path
from urllib.parse import urlsplit

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/NOTES.md",
    "benchmarks/results/*/*.png",
    "experiments/results/**/*.*",
]
# Found without importing the package.
FONT = (
    Path(importlib.util.find_spec("ziamath").origin).parent
    / "fonts/STIXTwoMath-Regular.ttf"
)
# What a browser fetches by itself, if it is on another host.
_ADDRESS = r"""["']?((?:https?:)?//[^"'>)\s]*)"""
FETCHED = {
    ".html": re.compile(rf"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)={_ADDRESS}"),
    ".css": re.compile(rf"(?:url\(|@import ){_ADDRESS}"),
}
log = get_plugin_logger("site")


def on_files(files, config):
    """Files keep their names in the repository, so that the pages' links hold here too."""
    inside = [(f"docs/{file.src_uri}", file.abs_src_path) for file in files]
    outside = [
        (str(path.relative_to(ROOT)), str(path))
        for pattern in OUTSIDE
        for path in sorted(ROOT.glob(pattern))
    ]
    outside = [pair for pair in outside if "/runs/" not in pair[0]]
    font = File.generated(config, f"assets/{FONT.name}", abs_src_path=str(FONT))
    found = Files([font, *_lists(config, [name for name, _ in outside])])
    for name, path in inside + outside:
        file = File.generated(config, name, abs_src_path=path)
        file.dest_uri = file.dest_uri.removeprefix("docs/")
        found.append(file)
    return found


def _lists(config, names):
    """For every folder without a README a page in its place, which lists the files."""
    for folder in sorted({str(Path(name).parent) for name in names if name.count("/") > 1}):
        if f"{folder}/README.md" not in names:
            own = [
                name.rpartition("/")[2] for name in names if name.startswith(f"{folder}/")
            ]
            text = "\n".join([f"# {folder}\n", *(f"- [{name}]({name})" for name in own)])
            yield File.generated(config, f"{folder}/README.md", content=text)


def on_page_markdown(markdown, page, config, files):
    """A link to a folder shows its README or its files here, as it does on a code host."""
    return re.sub(r"(\]\((?!https?:)[^)#]*?)/?\)", lambda m: _folder(m, page), markdown)


def _folder(match, page):
    target = (ROOT / page.file.src_uri).parent / match[1][2:]
    return f"{match[1]}/README.md)" if target.is_dir() else match[0]


def on_page_content(html, page, config, files):
    """Equations as MathML, which browsers show without a script."""
    html = re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>',
        lambda m: _mathml(m[1], "inline"),
        html,
        flags=re.S,
    )
    return re.sub(
        r'<div class="arithmatex">\\\[(.*?)\\\]</div>',
        lambda m: _mathml(m[1], "block"),
        html,
        flags=re.S,
    )


def _mathml(latex, display):
    text = latex.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&").strip()
    mathml = convert(text, display=display)
    return f'<div class="equation">{mathml}</div>' if display == "block" else mathml


def on_post_build(config):
    """Raise an error if the site fetches from another host; list the links to others."""
    links = set()
    for path in sorted(Path(config.site_dir).rglob("*.*")):
        if path.suffix not in (".html", ".css"):
            continue
        text = path.read_text()
        if fetched := FETCHED[path.suffix].findall(text):
            raise PluginError(f"{path.name} fetches {', '.join(fetched)}")
        if "```" in text:
            raise PluginError(f"{path.name} shows the backticks of a block of code")
        links |= set(re.findall(r'<a [^>]*?href="?(\w+:[^">\s]*)', text))
    for link in sorted(links):
        parts = urlsplit(link)
        if parts.scheme != "https" or "." not in (parts.hostname or ""):
            raise PluginError(f"not the address of a page: {link}")
        log.info("leads outside, not visited: %s", link)
