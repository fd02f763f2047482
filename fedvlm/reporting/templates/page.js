"use strict";
(() => {
  const tip = document.getElementById("tip");

  // A value is said at once where it is pointed at, and not after the browser's own delay.
  function mark(root) {
    for (const title of root.querySelectorAll("svg .mark > title")) {
      title.parentNode.setAttribute("data-tip", title.textContent);
      title.remove();
    }
  }
  function show(event) {
    const found = event.target.closest && event.target.closest("[data-tip]");
    tip.hidden = !found;
    if (!found) return;
    tip.textContent = found.getAttribute("data-tip");
    const box = found.getBoundingClientRect();
    const wide = document.documentElement.clientWidth;
    const left = Math.min(box.left + box.width / 2 - tip.offsetWidth / 2, wide - tip.offsetWidth - 8);
    tip.style.left = Math.max(8, left) + scrollX + "px";
    const above = box.top - tip.offsetHeight - 4;
    tip.style.top = (above < 0 ? box.bottom + 4 : above) + scrollY + "px";
  }
  document.addEventListener("pointerover", show);
  document.addEventListener("pointerdown", show);

  function key(row, column) {
    const cell = row.children[column];
    const order = cell.getAttribute("data-order");
    return order === null ? null : Number(order);
  }
  function sort(head, column) {
    const body = head.closest("table").tBodies[0];
    const rows = Array.from(body.rows);
    const numbers = rows.some((row) => key(row, column) !== null);
    // The largest number first, and words from A on; asked again, the other way round.
    const first = numbers ? "descending" : "ascending";
    const now = head.getAttribute("aria-sort");
    const wanted = now === first ? (numbers ? "ascending" : "descending") : first;
    const sign = wanted === "ascending" ? 1 : -1;
    rows.sort((one, other) => {
      if (!numbers) {
        return sign * one.children[column].textContent.localeCompare(other.children[column].textContent);
      }
      const a = key(one, column), b = key(other, column);
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (a - b);
    });
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", wanted);
    body.append(...rows);
  }
  function sortable(root) {
    for (const table of root.querySelectorAll("table")) {
      if (table.tBodies[0].rows.length < 2) continue;
      Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
        if (!head.textContent.trim() || head.querySelector("button")) return;
        const button = document.createElement("button");
        const words = document.createElement("span");
        const note = head.querySelector("small");
        button.type = "button";
        words.textContent = note ? head.firstChild.textContent : head.textContent;
        button.append(words);
        if (note) button.append(note);
        head.replaceChildren(button);
        button.addEventListener("click", () => sort(head, column));
      });
    }
  }
  // Only what scrolls needs to be reached to be scrolled.
  function reachable(root) {
    for (const region of root.querySelectorAll(".table, pre")) {
      const scrolls = region.scrollWidth > region.clientWidth + 1;
      if (scrolls) region.tabIndex = 0;
      else region.removeAttribute("tabindex");
    }
  }
  function ready(root) {
    mark(root);
    sortable(root);
    reachable(root);
  }
  addEventListener("resize", () => reachable(document));
  document.addEventListener("toggle", (event) => reachable(event.target), true);
  window.fedvlmReady = ready;
  ready(document);
})();
