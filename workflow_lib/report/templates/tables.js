"use strict";
// Return the text of a compressed element. Fails if the browser is too old.
const unpacked = async (id) => {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent), (char) => char.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
};

// Tables: a click on a heading sorts by it, a second click reverses the order; cells without a value stay last. A long
// table has pages and a filter. Its first rows are HTML; the others are made here, from columns of values, when they are
// first shown, and look the same.
(() => {
  const count = new Intl.NumberFormat("en-US");
  const fixed = (digits) => new Intl.NumberFormat("en-US",
    { minimumFractionDigits: digits, maximumFractionDigits: digits, roundingMode: "halfEven" });
  const formats = new Map();
  const number = (value, digits) => {
    if (value === null) return "–";
    const places = Math.abs(value) >= 1000 ? Math.max(0, digits - 3) : digits;
    if (!formats.has(places)) formats.set(places, fixed(places));
    return formats.get(places).format(value);
  };
  const exponent = (value) => value.toExponential(1).replace(/(e[+-])(\d)$/, (all, sign, digit) => `${sign}0${digit}`);
  const made = (name, text, className = "") => Object.assign(document.createElement(name), { textContent: text, className });
  const button = (text, label, press) => {
    const element = Object.assign(made("button", text), { type: "button" });
    element.setAttribute("aria-label", label);
    element.addEventListener("click", () => { if (element.getAttribute("aria-disabled") !== "true") press(); });
    return element;
  };

  // For each kind of column: `fill` shows a value in a cell, `text` returns what the filter searches.
  const KINDS = {
    name: {
      fill: (cell, { values, notes }, row) => {
        const more = (notes[row] ?? []).flatMap(([name, text]) => [made("br", ""), made(name, text, "quiet")]);
        cell.replaceChildren(made("code", values[row]), ...more);
      },
      text: ({ values, notes }, row) => [values[row], ...(notes[row] ?? []).map(([, text]) => text)].join(" "),
    },
    text: { fill: (cell, { values }, row) => { cell.textContent = values[row]; }, text: ({ values }, row) => values[row] },
    count: { fill: (cell, { values }, row) => { cell.textContent = count.format(values[row]); } },
    number: {
      fill: (cell, { values, digits, intervals, cautions, reasons }, row) => {
        const interval = intervals?.[row] ? [made("span", intervals[row], "interval")] : [];
        const caution = cautions?.[row] && values[row] !== null ? [made("span", cautions[row], "interval caution")] : [];
        cell.replaceChildren(number(values[row], digits), ...interval, ...caution);
        cell.title = reasons?.[row] ?? "";
      },
    },
    error: { fill: (cell, { values }, row) => { cell.querySelector(".interval").textContent = exponent(values[row]); } },
  };

  const compare = (a, b) => (a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : String(a).localeCompare(String(b)));

  const setUp = (table, columns) => {
    const body = table.tBodies[0];
    const elements = [...body.rows];
    const length = columns ? columns[0].values.length : elements.length;
    const model = elements.at(-1);
    const isLong = length > Number(table.dataset.page);
    const size = isLong ? Number(table.dataset.page) : length;

    const build = (row) => {
      const element = model.cloneNode(true);
      columns.forEach((column, place) => KINDS[column.kind].fill(element.cells[place], column, row));
      return element;
    };
    const element = (row) => (elements[row] ??= build(row));
    const key = (row, place) => {
      if (columns) {
        const value = columns[place].values[row];
        return value === null || value === "–" ? "" : value;
      }
      const cell = elements[row].cells[place];
      return cell.dataset.value ?? cell.textContent.trim();
    };
    const text = (row) => (columns
      ? columns.map((column) => KINDS[column.kind].text?.(column, row) ?? "").join(" ")
      : elements[row].textContent).toLowerCase();

    let order = Array.from({ length }, (_, row) => row);
    let texts = null;
    let words = [];
    let first = 0;
    const found = () => {
      if (!words.length) return order;
      texts ??= order.reduce((all, row) => { all[row] = text(row); return all; }, []);
      return order.filter((row) => words.every((word) => texts[row].includes(word)));
    };
    let bar = null;
    const show = (from) => {
      const rows = found();
      const last = Math.max(0, Math.ceil(rows.length / size) - 1) * size;
      first = Math.min(Math.max(0, from), last);
      const shown = rows.slice(first, first + size);
      body.replaceChildren(...shown.map(element));
      bar?.(first, shown.length, rows.length, last);
    };

    [...table.tHead.rows[0].cells].forEach((heading, place, headings) => {
      const press = Object.assign(document.createElement("button"), { type: "button" });
      press.append(...heading.childNodes);
      heading.append(press);
      press.addEventListener("click", () => {
        const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", direction);
        const sign = direction === "ascending" ? 1 : -1;
        const keys = Array.from({ length }, (_, row) => key(row, place));
        order.sort((x, y) => {
          const [a, b] = [keys[x], keys[y]];
          return a === "" || b === "" ? (a === "") - (b === "") : sign * compare(a, b);
        });
        show(0);
      });
    });

    if (!isLong) return;
    table.setAttribute("aria-rowcount", length + 1);
    const caption = table.dataset.name;
    const filter = Object.assign(made("input", ""), { type: "search", placeholder: "part of a name or a value" });
    const label = made("label", `Filter ${caption} `);
    label.append(filter);
    filter.addEventListener("input", () => {
      words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      show(0);
    });
    const status = made("span", "");
    status.setAttribute("role", "status");
    const [start, before, after, end] = [
      button("« first", "First page", () => show(0)),
      button("‹ previous", "Previous page", () => show(first - size)),
      button("next ›", "Next page", () => show(first + size)),
      button("last »", "Last page", () => show(Infinity)),
    ];
    bar = (from, shown, total, last) => {
      const rows = shown ? `rows ${count.format(from + 1)}–${count.format(from + shown)} of ${count.format(total)}` : "no rows";
      status.textContent = words.length ? `${rows} (filtered, of ${count.format(length)})` : rows;
      for (const [press, isEnd] of [[start, from === 0], [before, from === 0], [after, from >= last], [end, from >= last]]) {
        press.setAttribute("aria-disabled", isEnd); // not `disabled`, which would take the focus away from it
      }
      [...body.rows].forEach((row, place) => row.setAttribute("aria-rowindex", from + place + 2));
    };
    const pager = made("div", "", "controls pager");
    pager.setAttribute("role", "group");
    pager.setAttribute("aria-label", `Pages of the table of ${caption}`);
    pager.append(label, start, before, status, after, end);
    table.parentElement.before(pager);
    show(0);
  };

  const more = document.getElementById("rows");
  for (const table of document.querySelectorAll("table.sortable")) {
    if (table.dataset.rows === undefined) setUp(table, null);
    else unpacked(more.id).then((text) => setUp(table, JSON.parse(text)), () => {
      document.getElementById("all-runs").hidden = false;
    });
  }
})();
