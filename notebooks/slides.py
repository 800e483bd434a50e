"""A run notebook as slides: one page that opens from disk, an arrow key a slide.

A slide is a Markdown cell with the code that follows it; the first stands alone.  What says *What to see* stays below
its figure, checks are left out, and a solution opens with a click.
"""

from html import escape

STYLE = """
html { scroll-snap-type: y mandatory; scrollbar-width: none; }
body.deck { max-width: none; padding: 0; }
body.deck nav { position: fixed; bottom: 0; right: 0; border: 0; padding: 0.4rem 1rem; z-index: 1; }
.deck section { box-sizing: border-box; height: 100vh; overflow-y: auto; padding: 4vh 6vw 8vh; scroll-snap-align: start;
  scroll-snap-stop: always; scrollbar-width: thin; font-size: clamp(1rem, 1.7vw, 1.6rem);
  border-bottom: 1px solid var(--line); }
.deck section > * { max-width: 60rem; margin-left: auto; margin-right: auto; }
.deck section.title { padding-top: 25vh; }
.deck section:focus { outline: none; }
.deck img { max-height: 62vh; width: auto; display: block; margin: 0 auto; }
.deck pre { font-size: 0.72em; }
@media print { .deck section { height: auto; min-height: 100vh; overflow: visible; page-break-after: always; } }
"""

KEYS = """
const all = [...document.querySelectorAll("section")];
const far = slide => Math.abs(slide.getBoundingClientRect().top);
const here = () => all.reduce((a, b) => far(b) < far(a) ? b : a);
const steps = {ArrowRight: 1, PageDown: 1, " ": 1, ArrowLeft: -1, PageUp: -1};
const ends = {Home: all[0], End: all.at(-1)};
document.addEventListener("keydown", event => {
  const to = event.key in steps ? all[all.indexOf(here()) + steps[event.key]] : ends[event.key];
  if (!to || event.target.closest("summary")) return;
  event.preventDefault();
  to.scrollIntoView();
  to.focus({preventScroll: true});
});
"""


def slides(body: str) -> list[str]:
    """The cells of a page's body, those that belong together as one slide.  -> HTML, one each"""
    from bs4 import BeautifulSoup

    found: list[list[str]] = []
    for cell in BeautifulSoup(body, "html.parser").find_all(recursive=False):
        classes = cell.get("class", [])
        if "celltag_check" in classes:
            continue
        says = cell.get_text().strip()
        if len(found) < 2 or ("text_cell" in classes and not says.startswith("What to see")):
            found.append([])
        found[-1].append(str(cell))
    return ["".join(cells) for cells in found]


def deck(body: str) -> str:
    """What stands in the body of a page of slides.  body: as course.render makes it, without its navigation"""
    first, *rest = (f'<section tabindex="-1">{part}</section>' for part in slides(body))
    sections = first.replace("<section", '<section class="title"', 1) + "".join(rest)
    nav = f'<nav><a href="index.html">{escape("The course")}</a></nav>'
    return f"<style>{STYLE}</style>{nav}<main>{sections}</main><script>{KEYS}</script>"
