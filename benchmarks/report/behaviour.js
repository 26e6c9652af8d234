"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// The theme's button goes round: as the system has it, light, dark.
function themeButton(button) {
  const show = () => { button.textContent = `Theme: ${theme.get()}`; };
  button.addEventListener("click", () => {
    const next = theme.names[(theme.names.indexOf(theme.get()) + 1) % theme.names.length];
    theme.set(next);
    theme.store(next);
    show();
  });
  button.hidden = false;
  show();
}

// A cell's data-value sorts it as a number, else its text does. Cells without a value stay last both ways.
function sortKey(row, column) {
  const cell = row.cells[column];
  if (!cell || cell.dataset.value === "") return null;
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}

function sortBy(header) {
  const table = header.closest("table"), column = header.cellIndex;
  const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
  const sign = direction === "ascending" ? 1 : -1;
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "number" && typeof b === "number"
      ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
  };
  for (const body of table.tBodies) {
    const rows = [...body.rows].map(row => [sortKey(row, column), row]);
    body.append(...rows.sort(([a], [b]) => compare(a, b)).map(([, row]) => row));
  }
  all("[aria-sort]", table).forEach(other => other.removeAttribute("aria-sort"));
  header.setAttribute("aria-sort", direction);
}

// Headers become buttons only where there is a script to answer them.
function makeSortable(table) {
  for (const header of all("thead th", table)) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    button.addEventListener("click", () => sortBy(header));
    header.append(button);
  }
}

// A row carries what the menus choose by as data attributes; the search field looks through all of its text.
function filterRows(form) {
  const rows = all("#ops tbody tr");
  const text = new Map(rows.map(row => [row, `${row.dataset.op} ${row.textContent}`.toLowerCase()]));
  const apply = () => {
    const words = form.elements.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const menus = all("select", form).filter(menu => menu.value !== "");
    let shown = 0;
    for (const row of rows) {
      const fits = words.every(word => text.get(row).includes(word))
        && menus.every(menu => row.dataset[menu.name] === menu.value);
      row.hidden = !fits;
      shown += fits;
    }
    for (const group of all("#ops .group")) group.hidden = !all("tbody tr", group).some(row => !row.hidden);
    form.querySelector("output").textContent = `${shown} of ${rows.length} rows`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", event => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  form.hidden = false;
  apply();
}

// Marks in the bar the section that is being read.
function followSections() {
  const links = new Map(all(".bar nav a").map(link => [link.hash.slice(1), link]));
  const observer = new IntersectionObserver(entries => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      links.forEach(link => link.removeAttribute("aria-current"));
      const link = links.get(target.id), strip = link.closest("nav");
      link.setAttribute("aria-current", "true");
      strip.scrollTo({ left: link.offsetLeft - strip.offsetLeft - strip.clientWidth / 3 });
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  all("section[id]").filter(section => links.has(section.id)).forEach(section => observer.observe(section));
}

themeButton(document.querySelector(".theme"));
all("table.sortable").forEach(makeSortable);
all("form.filter").forEach(filterRows);
followSections();
addEventListener("beforeprint", () => all("details").forEach(part => { part.open = true; }));
