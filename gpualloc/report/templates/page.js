"use strict";
(() => {
  const words = JSON.parse(document.getElementById("words").textContent);
  const root = document.documentElement;
  const kept = {
    get(key) { try { return sessionStorage.getItem("gpualloc." + key); } catch { return null; } },
    set(key, value) { try { sessionStorage.setItem("gpualloc." + key, value); } catch { /* a page from disk may have no storage */ } },
  };

  // Theme: the system's, until the button is pressed.
  const button = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
  const tell = () => button.setAttribute("aria-pressed", String(isDark()));
  const chosen = kept.get("theme");
  if (chosen) root.dataset.theme = chosen;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept.set("theme", root.dataset.theme);
    tell();
  });
  prefersDark.addEventListener("change", tell);
  tell();

  // All tables are printed.
  const opened = [];
  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details:not([open])")) { each.open = true; opened.push(each); }
  });
  addEventListener("afterprint", () => { while (opened.length) opened.pop().open = false; });

  // Raw rows: pages of them, with a filter and sorting; rows are made when they are looked at.
  const raw = JSON.parse(document.getElementById("raw").textContent);
  if (raw) {
    const PAGE_ROWS = 100;
    const table = document.getElementById("raw-table");
    const body = table.tBodies[0];
    const numberOf = (text) => { const value = parseFloat(text.replace(/,/g, "")); return Number.isNaN(value) ? -Infinity : value; };
    let rows = raw.rows;
    let page = 0;
    let sorted = null;
    const element = (name, text) => { const made = document.createElement(name); if (text !== undefined) made.textContent = text; return made; };
    const bar = element("div");
    bar.className = "pager";
    const label = element("label", words.filter + " ");
    const input = element("input");
    input.type = "search";
    label.append(input);
    const previous = element("button", words.previous);
    const next = element("button", words.next);
    previous.type = next.type = "button";
    const state = element("span");
    state.setAttribute("role", "status");
    bar.append(label, previous, next, state);
    document.getElementById("raw-note").replaceWith(bar);
    const show = () => {
      const pages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
      page = Math.min(Math.max(page, 0), pages - 1);
      const made = document.createDocumentFragment();
      for (const row of rows.slice(page * PAGE_ROWS, (page + 1) * PAGE_ROWS)) {
        const line = element("tr");
        row.forEach((text, place) => { const cell = element("td", text); if (raw.numbers[place]) cell.className = "n"; line.append(cell); });
        made.append(line);
      }
      body.replaceChildren(made);
      previous.disabled = page === 0;
      next.disabled = page === pages - 1;
      state.textContent = words.page.replace("{page}", page + 1).replace("{pages}", pages) + " · " + words.rows.replace("{n}", rows.length.toLocaleString("en"));
    };
    const select = () => {
      const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows = wanted.length ? raw.rows.filter((row) => { const text = row.join(" ").toLowerCase(); return wanted.every((word) => text.includes(word)); }) : raw.rows.slice();
      if (sorted) {
        const { place, factor } = sorted;
        const isNumber = raw.numbers[place];
        rows.sort((a, b) => factor * (isNumber ? numberOf(a[place]) - numberOf(b[place]) : a[place].localeCompare(b[place])));
      }
      show();
    };
    let waiting = 0;
    input.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(() => { page = 0; select(); }, 120); });
    previous.addEventListener("click", () => { page -= 1; show(); });
    next.addEventListener("click", () => { page += 1; show(); });
    [...table.tHead.rows[0].cells].forEach((cell, place) => {
      const sorter = element("button", cell.textContent);
      sorter.type = "button";
      sorter.className = "sorter";
      cell.replaceChildren(sorter);
      sorter.addEventListener("click", () => {
        sorted = { place, factor: sorted && sorted.place === place ? -sorted.factor : 1 };
        for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", sorted.factor > 0 ? "ascending" : "descending");
        page = 0;
        select();
      });
    });
    show();
  }

  // Live: ask the server for the state it has, and load the page again when that is another one.
  if (document.body.dataset.live) {
    const folds = [...document.querySelectorAll("details")];
    const before = (kept.get("open") || "").split(",").filter(Boolean).map(Number);
    for (const place of before) if (folds[place]) folds[place].open = true;
    let seen = null;
    const ask = async () => {
      try {
        const answer = await fetch("state", { cache: "no-store" });
        if (!answer.ok) throw new Error(String(answer.status));
        const now = await answer.text();
        if (seen === null) seen = now;
        if (now !== seen) {
          kept.set("open", folds.map((each, place) => (each.open ? place : -1)).filter((place) => place >= 0).join(","));
          location.reload();
          return;
        }
        setTimeout(ask, 2000);
      } catch {
        const chip = document.getElementById("live");
        chip.textContent = words.lost;
        chip.className = "chip lost";
      }
    };
    ask();
  }
})();
