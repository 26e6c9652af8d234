// Before anything is painted: the theme that was chosen the last time. Storage may be forbidden; then it is the system's.
const theme = {
  names: ["auto", "light", "dark"],
  stored() { try { return localStorage.getItem("theme"); } catch { return null; } },
  store(name) { try { localStorage.setItem("theme", name); } catch { /* for this visit only */ } },
  get() { return document.documentElement.dataset.theme ?? "auto"; },
  set(name) {
    if (name === "light" || name === "dark") document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
  },
};
theme.set(theme.stored());
