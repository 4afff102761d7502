"""The documentation as a site: `make site`. Sphinx reads README.md, the pages beside this file, and the docstrings."""

import configparser
import re
from pathlib import Path

import mtl_jax

DOCS = Path(__file__).parent
ROOT = DOCS.parent
_setup = configparser.ConfigParser()
_setup.read(ROOT / "setup.cfg", encoding="utf-8")
REPOSITORY = _setup["metadata"]["url"]

project, author, version = "mtl_jax", "The mtl_jax authors", mtl_jax.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "index"
exclude_patterns = ["README.md"]  # the index of docs/ on the repository's own pages; here the sidebar is that
default_role = "code"
myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_type_aliases = {"Array": "Array"}
html_theme = "furo"
html_title = f"mtl_jax {version}"
html_theme_options = {
    "source_repository": REPOSITORY,
    "source_branch": "main",
    "source_directory": "docs/",
}

# Modules of the core that users call, in the order of docs/research.md, and the faces of the shell.
CORE = (
    "backbones", "embed", "scale_shift", "base_learner", "learners", "solved_learners", "logistic", "cosine_head",
    "episodes", "augment", "meta", "hard_tasks", "pretrain", "optimizers", "evaluation", "metrics", "parallel",
    "layers", "types", "errors",
)  # fmt: skip
SIDEBAR = {
    "Start": ("install", "quickstart", "own_images", "own_data"),
    "Research": ("research", "fidelity", "results", "meta_training", "performance"),
    "Reference": ("api/index", "configs", "data", "cluster", "reliability"),
}
FACES = ("data", "train", "evaluate", "classify", "report", "export", "frozen_episodes", "reference_weights", "workdir")


def to_site(text: str, folder: Path) -> str:
    """A page's Markdown for the site: other files than pages are linked to in the repository."""
    text = re.sub(
        r"<picture>.*?</picture>",
        "![](docs/images/method-light.svg){.only-light}\n![](docs/images/method-dark.svg){.only-dark}",
        text,
        flags=re.DOTALL,
    )

    def link(match: re.Match[str]) -> str:
        path, hash_, anchor = match[1].partition("#")
        file = (folder / path).resolve()
        if "://" in path or not path or not file.is_relative_to(ROOT):
            return match[0]
        if file in (ROOT / "README.md", DOCS / "README.md"):
            return "](index.md)"
        if file.is_relative_to(DOCS) and file.suffix in (".md", ".svg", ".png"):
            return f"]({file.relative_to(DOCS)}{hash_}{anchor})"
        return f"]({REPOSITORY}/blob/main/{file.relative_to(ROOT)}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def write_pages(app) -> None:
    """index.md: README.md and the sidebar; api/index.rst: the names of `mtl_jax`; api/*.rst: a page a module."""
    home = [to_site((ROOT / "README.md").read_text(encoding="utf-8"), ROOT)]
    for caption, names in SIDEBAR.items():
        home += ["```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""]
    _write("index.md", "\n".join(home))
    (DOCS / "api").mkdir(exist_ok=True)
    pages = [*CORE, *FACES]
    lines = ["API reference", "=============", "", "Everything that ``import mtl_jax`` offers.", ""]
    public = mtl_jax._MODULES
    for module in mtl_jax._NAMES:
        lines += [f"mtl_jax.{module}", "-" * (8 + len(module)), ""]
        for name in (name for name, home in public.items() if home == module):
            kind = "class" if isinstance(getattr(mtl_jax, name), type) else "function"
            lines += [f".. auto{kind}:: mtl_jax.{name}", *(["   :members:"] if kind == "class" else []), ""]
    lines += ["Modules", "-------", "", ".. toctree::", "   :maxdepth: 1", "", *(f"   {page}" for page in pages), ""]
    _write("api/index.rst", "\n".join(lines))
    for page in pages:
        title = f"mtl_jax.{page}"
        elsewhere = [name for name, home in public.items() if home.split(".")[0] == page]
        own = [title, "=" * len(title), "", f".. automodule:: {title}", "   :members:"]
        own += ["   :imported-members:"] if page in FACES else []
        if elsewhere:
            members = {name.removesuffix("_scale_shift") for name in elsewhere}
            own += [f"   :exclude-members: {', '.join(sorted(members))}", ""]
            links = (f":py:obj:`mtl_jax.{name}`" for name in elsewhere)
            own += [f"On the :doc:`first page <index>`: {', '.join(links)}."]
        _write(f"api/{page}.rst", "\n".join([*own, ""]))


def _write(name: str, text: str) -> None:
    """Writes a page where it has changed: a page that has not is not built again."""
    path = DOCS / name
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


FIELD = re.compile(r" *\*{0,2}\w+(, \w+)*: \S")


def as_rst(app, what: str, name: str, thing, options, lines: list[str]) -> None:
    """Docstrings are plain text with `code`. Fields (`name: what it is`) become a list; stray markup is escaped."""
    given, paragraph = list(lines), []
    lines.clear()
    for line in [*given, ""]:
        if line.strip():
            paragraph.append(line)
            continue
        lines += [_escaped(each) for each in _listed(paragraph)]
        lines.append("")
        paragraph = []


def _listed(paragraph: list[str]) -> list[str]:
    """A paragraph of fields as a list; below Args, the fields of a field."""
    if not paragraph[:1] or FIELD.match(paragraph[0]):
        whole = all(FIELD.match(line) or line.startswith(" ") for line in paragraph)
        return (
            [f"- {line}" if not line.startswith(" ") else f"  {line.strip()}" for line in paragraph]
            if whole
            else paragraph
        )
    if paragraph[0] not in ("Args:", "Returns:", "Raises:"):
        return paragraph
    listed: list[str] = []
    for line in paragraph:
        is_inner = line.startswith("    ") and line[4] != " " and FIELD.match(line)
        if is_inner and not listed[-1].startswith(("    - ", "      ")):
            listed.append("")
        listed.append(f"    - {line.strip()}" if is_inner else line)
    return listed


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"\*|\||(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def skip(app, what: str, name: str, thing, is_skipped: bool, options) -> bool | None:
    """Leaves out what scikit-learn gives every estimator."""
    return True if re.fullmatch(r"set_\w+_request|get_metadata_routing", name) else None


def setup(app) -> None:
    """Connects the steps above to the build."""

    def read(app, name: str, content: list[str]) -> None:
        if name != "index" and app.env.doc2path(name).suffix == ".md":
            content[0] = to_site(content[0], DOCS)

    app.connect("builder-inited", write_pages)
    app.connect("source-read", read)
    app.connect("autodoc-process-docstring", as_rst, priority=400)  # before napoleon
    app.connect("autodoc-skip-member", skip)
