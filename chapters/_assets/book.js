// A browser lets no page read its neighbours on disk, so a search there shows titles without excerpts.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// Sphinx marks a signature's parameters up as a list without terms, docutils a bibliography as a list without
// items. Neither is a list to a screen reader.
for (const element of document.querySelectorAll("dt.sig dl, dt.sig dd, .citation-list, .citation")) {
  element.setAttribute("role", "none");
}
