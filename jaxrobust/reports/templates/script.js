"use strict";
// What the page gains where scripts run: all of it can be read without.
(() => {
  const make = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const plain = (text) => text.replace(/\s+/g, " ").trim();

  // Light and dark: what the system has, until the reader chooses.
  const root = document.documentElement;
  const kept = (action) => { try { return action(localStorage); } catch { return null; } };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const theme = make("button", "", { type: "button", class: "theme" });
  const name = () => { theme.textContent = isDark() ? "Light" : "Dark"; };
  const before = kept((storage) => storage.getItem("jaxrobust-theme"));
  if (before === "dark" || before === "light") root.dataset.theme = before;
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    kept((storage) => storage.setItem("jaxrobust-theme", root.dataset.theme));
    name();
  });
  system.addEventListener("change", name);
  name();
  document.querySelector("header").prepend(theme);

  // The contents: closed on a phone, where they would fill the screen; beside the text the place is marked.
  const contents = document.querySelector("nav details");
  const wide = matchMedia("(min-width: 64rem)");
  const fold = () => { contents.open = wide.matches; };
  wide.addEventListener("change", fold);
  fold();
  const links = [...contents.querySelectorAll("a")];
  const sections = links.map((link) => document.getElementById(link.hash.slice(1)));
  let asked = false;
  const mark = () => {
    asked = false;
    const end = innerHeight + scrollY >= root.scrollHeight - 4;
    const line = end ? innerHeight : innerHeight / 4;
    const here = sections.findLastIndex((section) => section.getBoundingClientRect().top <= line);
    links.forEach((link, index) => {
      if (index !== here) return link.removeAttribute("aria-current");
      if (link.hasAttribute("aria-current")) return;
      link.setAttribute("aria-current", "true");
      if (wide.matches) {
        const box = contents.parentElement;
        box.scrollTop = link.offsetTop - box.clientHeight / 2;
      }
    });
  };
  const ask = () => { if (!asked) { asked = true; requestAnimationFrame(mark); } };
  addEventListener("scroll", ask, { passive: true });
  addEventListener("resize", ask, { passive: true });
  mark();

  // A link into what is folded opens it.
  const open = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
  };
  addEventListener("hashchange", open);
  open();

  // Tables: a value and its interval are two cells of one column.
  const cells = (row) => [...row.cells].filter((cell) => !cell.classList.contains("interval"));
  const value = (cell) => Number(cell.dataset.value ?? NaN);
  const words = new Intl.Collator("en", { numeric: true });
  const compare = (a, b, order) => {
    const [x, y] = [value(a), value(b)];
    if (!isNaN(x) && !isNaN(y)) return order * (x - y);
    if (!isNaN(x) || !isNaN(y)) return isNaN(x) ? 1 : -1; // what is no number comes last
    const [one, other] = [plain(a.textContent), plain(b.textContent)];
    if ((one === "–") !== (other === "–")) return one === "–" ? 1 : -1;
    return order * words.compare(one, other);
  };

  const sortable = (table) => {
    const body = table.tBodies[0];
    const first = [...body.rows];
    const heads = [...table.querySelectorAll("thead [data-column]")];
    if (first.length < 2) return;
    for (const head of heads) {
      const button = make("button", "", { type: "button", title: "Sort by this column" });
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const state = head.getAttribute("aria-sort");
        const next = state === null ? "ascending" : state === "ascending" ? "descending" : null;
        heads.forEach((one) => one.removeAttribute("aria-sort"));
        const rows = [...first];
        if (next) {
          head.setAttribute("aria-sort", next);
          const column = Number(head.dataset.column);
          const order = next === "ascending" ? 1 : -1;
          rows.sort((a, b) => compare(cells(a)[column], cells(b)[column], order));
        }
        body.append(...rows);
      });
    }
  };

  // Copying: numbers as they were measured for a program, as they are shown for a paper.
  const titles = (table) => [...table.querySelectorAll("thead [data-column]")]
    .sort((a, b) => a.dataset.column - b.dataset.column)
    .map((head) => ({ group: head.dataset.group ?? "", title: plain(head.textContent) }));
  const KEYS = ["low", "high", "deviation", "n"];
  const csv = (table) => {
    const rows = [...table.tBodies[0].rows].map(cells);
    const heads = titles(table);
    const width = Math.max(heads.length, ...rows.map((row) => row.length));
    const extra = [...Array(width).keys()].map((column) =>
      KEYS.filter((key) => rows.some((row) => row[column].dataset[key] !== undefined)));
    const quoted = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const line = (row) => row.map(quoted).join(",");
    const top = heads.flatMap(({ group, title }, column) => {
      const own = title.replace(/,? ?n = [\d,]+$/, ""); // n has a column of its own
      const name = group ? `${group}: ${own}` : own;
      return [name, ...extra[column].map((key) => `${name} ${key}`)];
    });
    const shown = rows.map((row) => row.flatMap((cell, column) => {
      const number = value(cell);
      const text = plain(cell.textContent);
      const own = isNaN(number) ? (text === "–" ? "" : text) : String(number);
      return [own, ...extra[column].map((key) => cell.dataset[key] ?? "")];
    }));
    return [...(heads.length ? [top] : []), ...shown].map(line).join("\n") + "\n";
  };

  const SIGNS = {
    "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
    "−": "$-$", "±": "$\\pm$", "×": "$\\times$", "–": "--", "ℓ": "$\\ell$", "₂": "$_2$", "∞": "$_\\infty$",
    "≤": "$\\le$", "≥": "$\\ge$", "<": "$<$", ">": "$>$", "ε": "$\\varepsilon$", "→": "$\\to$", "↓": "$\\downarrow$",
    "δ": "$\\delta$", "ρ": "$\\rho$", "✓": "$\\checkmark$", "✗": "$\\times$",
  };
  const latex = (table) => {
    const escaped = (text) => plain(text)
      .replace(/[\\~^−±×–ℓ₂∞≤≥<>ε→↓δρ✓✗]|[&%$#_{}]/g, (sign) => SIGNS[sign] ?? `\\${sign}`);
    const line = (row) => `  ${row.join(" & ")} \\\\`;
    const rows = [...table.tBodies[0].rows].map((row) => cells(row).map((cell) => {
      const next = cell.nextElementSibling;
      const interval = next?.classList.contains("interval") ? ` ${next.textContent}` : "";
      return escaped(cell.textContent + interval);
    }));
    const heads = titles(table);
    const width = Math.max(heads.length, ...rows.map((row) => row.length));
    const numeric = [...Array(width).keys()].map((column) =>
      [...table.tBodies[0].rows].some((row) => !isNaN(value(cells(row)[column]))));
    const groups = [];
    heads.forEach(({ group }) => {
      if (groups.length && groups.at(-1).group === group) groups.at(-1).span += 1;
      else groups.push({ group, span: 1 });
    });
    const over = groups.map(({ group, span }) =>
      (group ? `\\multicolumn{${span}}{c}{${escaped(group)}}` : " &".repeat(span - 1).trim()));
    return [
      `\\begin{tabular}{${numeric.map((is) => (is ? "r" : "l")).join("")}}`,
      "  \\toprule",
      ...(groups.some(({ group }) => group) ? [line(over)] : []),
      ...(heads.length ? [line(heads.map(({ title }) => escaped(title))), "  \\midrule"] : []),
      ...rows.map(line),
      "  \\bottomrule",
      "\\end{tabular}",
    ].join("\n") + "\n";
  };

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = make("textarea", text);
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  };
  for (const table of document.querySelectorAll("table.data")) {
    if (!table.classList.contains("heat")) sortable(table);
    const tools = make("p", "", { class: "tools" });
    for (const [label, write] of [["CSV", csv], ["LaTeX", latex]]) {
      const button = make("button", `Copy as ${label}`, { type: "button" });
      button.addEventListener("click", async () => {
        await copy(write(table));
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = `Copy as ${label}`; }, 1500);
      });
      tools.append(button);
    }
    table.parentElement.after(tools);
  }
})();
