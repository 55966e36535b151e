// The figures. The page contains Plotly compressed to a quarter of its size.
unpacked("plotly").then((library) => {
  document.head.append(Object.assign(document.createElement("script"), { textContent: library }));
  const PALETTE = ["#3b82f6", "#f97316", "#10b981", "#e11d48", "#8b5cf6", "#d4a106", "#06b6d4", "#ec4899", "#84cc16", "#8a7f76"];
  const { curves, second, figures } = JSON.parse(document.getElementById("data").textContent);
  const config = { displayModeBar: false, responsive: true };
  const drawn = [];
  const POWERS = [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3];
  const tickText = (number) => (number < 1e-3 ? number.toExponential(0) : String(number));
  const logTicks = (digits) => {
    const tickvals = POWERS.flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)));
    return { tickvals, ticktext: tickvals.map(tickText) };
  };
  const [FEW_TICKS, MANY_TICKS] = [[1, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9]].map(logTicks);
  // The largest value of an axis divided by its smallest one.
  const ratio = (data, axis) => {
    const [key, name] = [axis[0], axis.replace("axis", "")];
    const own = data.filter((trace) => (trace[`${key}axis`] ?? key) === name && Array.isArray(trace[key]));
    const values = own.flatMap((trace) => trace[key]).filter((value) => value > 0);
    return Math.max(...values) / Math.min(...values);
  };

  // Plotly does not use style sheets, so its colours are read from the page's.
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink"), line: of("--line"), card: of("--card"), accent: of("--accent") };
  };
  const themed = (layout, data) => {
    const { ink, line, card } = colours();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const all = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "inherit", size: 13 },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink }, namelength: -1 } };
    for (const name of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))])) {
      all[name] = { ...layout[name], ...axis, ...(layout[name]?.type === "log" ? (ratio(data, name) < 8 ? MANY_TICKS : FEW_TICKS) : {}) };
    }
    return all;
  };
  const draw = (id, data, layout) => {
    const place = document.getElementById(id);
    Plotly.newPlot(place, data, themed(layout, data), config);
    drawn.push({ place, layout });
    return place;
  };
  const redraw = () => drawn.forEach(({ place, layout }) => {
    const current = { ...layout };
    for (const key of Object.keys(place.layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      const { range, autorange } = place.layout[key];
      current[key] = { ...layout[key], range, autorange };
    }
    Plotly.react(place, place.data, themed(current, place.data), config);
  });

  // Learning curves: three traces for each run and plot (validation, training, the place whose state is kept).
  const colour = (run) => PALETTE[run % PALETTE.length];
  const traces = (kind) => curves.flatMap((run, index) => {
    const line = { color: colour(index), width: 2 };
    const best = run.x.indexOf(run.best);
    const shared = { type: "scatter", showlegend: false };
    const mode = run.x.length === 1 ? "markers" : "lines"; // a line through one point is invisible
    return [
      { ...shared, mode, name: `${run.name} validation`, x: run.x, y: run[`val_${kind}`], marker: { color: colour(index) }, line },
      { ...shared, mode, name: `${run.name} training`, x: run.x, y: run[`train_${kind}`] || run.x.map(() => null),
        marker: { color: colour(index), symbol: "diamond-open" }, line: { ...line, width: 1.25, dash: "dot" }, opacity: 0.75 },
      { ...shared, mode: "markers", name: `${run.name} kept`, x: best < 0 ? [] : [run.best], y: best < 0 ? [] : [run[`val_${kind}`][best]],
        hoverinfo: "skip", marker: { symbol: "circle-open", size: 10, color: colour(index), line: { width: 2 } } },
    ];
  });
  // A logarithmic axis shows nothing if the values are close together; ticks between two epochs or steps have no meaning.
  const losses = curves.flatMap((run) => [...run.val_loss, ...run.train_loss]).filter((loss) => loss > 0);
  const scale = losses.length && Math.max(...losses) > 10 * Math.min(...losses) ? "log" : "linear";
  const ticks = Math.max(0, ...curves.flatMap((run) => run.x)) <= 10 ? { dtick: 1 } : {};
  const curve = (place, kind, y) => draw(`curve-${place}`, traces(kind), {
    margin: { l: 55, r: 10, t: 10, b: 45 }, hovermode: "closest",
    xaxis: { title: { text: curves.length ? curves[0].unit : "epoch" }, ...ticks }, yaxis: y,
  });
  const plots = [curve("loss", "loss", { type: scale }), curve("second", second, {})];

  const controls = document.getElementById("curve-controls");
  const boxes = curves.map((run, index) => {
    const label = document.createElement("label");
    const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
    const swatch = document.createElement("i");
    swatch.style.background = colour(index);
    label.append(box, swatch, run.name);
    return { box, label };
  });
  const training = Object.assign(document.createElement("input"), { type: "checkbox", checked: curves.length <= 6 });
  const show = () => {
    const visible = boxes.flatMap(({ box }) => [box.checked, box.checked && training.checked, box.checked]);
    plots.forEach((plot) => Plotly.restyle(plot, { visible }));
  };
  const button = (text, wanted) => {
    const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    made.addEventListener("click", () => { boxes.forEach(({ box }, index) => { box.checked = wanted(index); }); show(); });
    return made;
  };
  const trainingLabel = document.createElement("label");
  trainingLabel.append(training, "training curves");
  controls.append(button("all", () => true), button("best", (index) => index === 0), button("none", () => false), trainingLabel,
    ...boxes.map(({ label }) => label));
  controls.addEventListener("change", show);
  show();

  for (const { name, data, layout } of figures) {
    const place = document.getElementById(`figure-${name}`);
    const panels = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).length;
    if (panels > 1) place.style.minWidth = `${panels * 15}rem`;
    draw(`figure-${name}`, data, { margin: { l: 60, r: 20, t: 15, b: 50 }, colorway: PALETTE, legend: { orientation: "h", y: 1.12 }, ...layout });
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // Print dark on white.
  const root = document.documentElement;
  const { theme } = root.dataset;
  addEventListener("beforeprint", () => { root.dataset.theme = "light"; redraw(); });
  addEventListener("afterprint", () => { root.dataset.theme = theme; redraw(); });
}, () => {
  for (const place of document.querySelectorAll(".plot")) {
    place.textContent = "This browser is too old to draw the figure (it needs DecompressionStream, of 2023).";
  }
});
