// Tables that are wider than the page scroll by keyboard, too. The theme wraps them once the page is there.
addEventListener("load", () => setTimeout(() => {
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap")) table.tabIndex = 0
}))
