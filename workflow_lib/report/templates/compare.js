// Two runs that the reader picks, side by side.
ready.then(({ data, draw, colour }) => {
  const controls = document.getElementById("compare-controls");
  if (!controls) return;
  const { compared, curves, metrics, unit } = data;
  const pick = (label, chosen) => {
    const select = made("select", {}, ...compared.map(({ name }, number) => made("option", { value: number, textContent: name, selected: number === chosen })));
    controls.append(made("label", {}, `${label} `, select));
    return select;
  };
  const picks = [pick("Run A", 0), pick("Run B", 1)];
  const table = document.getElementById("compare-table");
  const row = (heading, cells, className = "") => made("tr", { className }, made("th", { scope: "row" }, heading), ...cells.map((cell) => made("td", {}, cell)));
  const links = ({ files }) => made("span", {}, ...files.flatMap(([label, path], number) => [number ? ", " : "", made("a", { href: path.split("/").map(encodeURIComponent).join("/"), textContent: label })]));
  const show = () => {
    const runs = picks.map((select) => compared[Number(select.value)]);
    const rows = (key) => Object.keys({ ...runs[0][key], ...runs[1][key] }).map((name) => {
      const cells = runs.map((run) => run[key][name] ?? "–");
      return row(key === "settings" ? made("code", { textContent: name }) : name, cells, key === "settings" && cells[0] !== cells[1] ? "differs" : "");
    });
    const head = made("tr", {}, made("td"), ...runs.map(({ name }) => made("th", { scope: "col" }, made("code", { textContent: name }))));
    table.replaceChildren(made("thead", {}, head),
      made("tbody", {}, ...rows("settings"), ...rows("numbers"), row("Files", runs.map(links))));
    document.getElementById("compare-command").textContent = `everstep compare ${runs.map(({ name }) => name).join(" ")}`;
    const found = runs.map(({ name }) => curves.find((run) => run.name === name)).filter(Boolean);
    for (const [place, kind] of [["loss", "val_loss"], ["second", metrics[0][0]]]) {
      const traces = found.flatMap((run, number) => tracesOf(run, kind, { unit, weight: 0, training: true, colour: colour(number) }));
      draw(`compare-${place}`, traces, curveLayout(unit, false, found));
    }
  };
  controls.addEventListener("change", show);
  show();
});
