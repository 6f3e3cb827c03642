"use strict";
(() => {
  const body = document.querySelector("#fleet tbody");
  const buttons = [...document.querySelectorAll("#fleet .sort")];
  const valueOf = (row, key, kind) => {
    const cell = row.querySelector(`[data-${key}]`);
    const text = cell ? cell.getAttribute(`data-${key}`) : "";
    return kind === "text" ? text : text === "" ? NaN : Number(text);
  };
  const compare = (a, b) => {
    // What is not known comes last, whichever way.
    if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
    return a - b;
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const { key, kind } = button.dataset;
      const down = button.getAttribute("aria-sort") === "ascending";
      for (const other of buttons) other.removeAttribute("aria-sort");
      button.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].map((row) => [valueOf(row, key, kind), row]);
      const unknown = rows.filter(([value]) => Number.isNaN(value));
      const known = rows.filter(([value]) => !Number.isNaN(value)).sort(([a], [b]) => (down ? -1 : 1) * compare(a, b));
      for (const [, row] of [...known, ...unknown]) body.append(row);
    });
  }
})();
