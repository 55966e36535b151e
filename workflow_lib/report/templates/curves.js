// Learning curves: of each run the validation, the training, and the place whose weights are kept.

// Return the values smoothed by an exponential moving average that is corrected for its start; gaps stay gaps.
const smoothed = (values, weight) => {
  if (!weight) return values;
  let [sum, total] = [0, 0];
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
};

// Return the traces of a run: `kind` is the column of the loss or of another metric, `unit` that of the x axis.
const tracesOf = (run, kind, { unit, weight, training, colour }) => {
  const [x, values, own] = [run[unit], run[kind], run[kind.replace(/^val_/, "train_")]];
  const mode = x.length === 1 ? "markers" : "lines"; // a line through one point is invisible
  const shared = { type: "scatter", showlegend: false, mode };
  const isByStep = kind === "val_loss" && unit === "step" && run.steps;
  const [trainX, train] = isByStep ? [run.steps.step, run.steps.train_loss] : [x, own ?? x.map(() => null)];
  const faint = weight ? [{ ...shared, x, y: values, hoverinfo: "skip", opacity: 0.25, line: { color: colour, width: 1 } }] : [];
  return [
    ...faint,
    { ...shared, name: `${run.name} validation`, x, y: smoothed(values, weight), marker: { color: colour }, line: { color: colour, width: 2 } },
    ...(training ? [{ ...shared, name: `${run.name} training`, x: trainX, y: smoothed(train, weight),
      marker: { color: colour, symbol: "diamond-open" }, line: { color: colour, width: 1.25, dash: "dot" }, opacity: 0.75 }] : []),
    { ...shared, mode: "markers", name: `${run.name} kept`, x: run.best === null ? [] : [x[run.best]], y: run.best === null ? [] : [values[run.best]],
      hoverinfo: "skip", marker: { symbol: "circle-open", size: 10, color: colour, line: { width: 2 } } },
  ];
};

// Return the traces of runs that differ in their seed or fold: the mean of the validation, and one deviation around it.
const meanTraces = (runs, name, kind, { unit, weight, colour }) => {
  const at = new Map();
  for (const run of runs) {
    run[unit].forEach((x, place) => {
      const value = run[kind][place];
      if (value !== null) at.set(x, [...(at.get(x) ?? []), value]);
    });
  }
  const points = [...at].filter(([, values]) => values.length === runs.length).sort(([a], [b]) => a - b);
  const means = points.map(([, values]) => values.reduce((sum, value) => sum + value, 0) / values.length);
  const deviations = points.map(([, values], place) => Math.sqrt(
    values.reduce((sum, value) => sum + (value - means[place]) ** 2, 0) / Math.max(1, values.length - 1)));
  const x = points.map(([place]) => place);
  const shared = { type: "scatter", showlegend: false, mode: points.length === 1 ? "markers" : "lines" };
  const [mean, deviation] = [smoothed(means, weight), smoothed(deviations, weight)];
  const edge = (sign) => mean.map((value, place) => value + sign * deviation[place]);
  return [
    { ...shared, x, y: edge(-1), hoverinfo: "skip", line: { width: 0, color: colour } },
    { ...shared, x, y: edge(1), hoverinfo: "skip", line: { width: 0, color: colour }, fill: "tonexty", fillcolor: `${colour}33` },
    { ...shared, name: `${name} mean`, x, y: mean, line: { color: colour, width: 2.5 }, marker: { color: colour } },
  ];
};

const curveLayout = (unit, isLog, runs) => ({
  margin: { l: 55, r: 10, t: 10, b: 45 }, hovermode: "closest",
  xaxis: { title: { text: unit }, ...(Math.max(0, ...runs.flatMap((run) => run[unit])) <= 10 ? { dtick: 1 } : {}) },
  yaxis: { type: isLog ? "log" : "linear" },
});

ready.then(({ data, draw, colour }) => {
  const { curves, groups, metrics, unit } = data;
  // A logarithmic axis shows nothing if the values are close together.
  const losses = curves.flatMap((run) => [...run.val_loss, ...run.train_loss]).filter((loss) => loss > 0);
  const startsLog = losses.length > 0 && Math.max(...losses) > 10 * Math.min(...losses);

  const controls = document.getElementById("curve-controls");
  const units = made("select", {}, ...["epoch", "step"].map((name) => made("option", { value: name, textContent: name, selected: name === unit })));
  const metric = made("select", {}, ...metrics.map(([value, textContent]) => made("option", { value, textContent })));
  const smoothing = made("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: 0 });
  const logLoss = checkBox("logarithmic loss", startsLog);
  const logSecond = checkBox("logarithmic metric", false);
  const training = checkBox("training curves", curves.length <= 6);
  const means = checkBox("mean ± deviation over seeds", false);
  const boxes = curves.map((run, number) => checkBox(run.name, true, colour(number)));
  const groupBoxes = groups.map((group, number) => checkBox(group.name, true, colour(number)));
  const list = made("div", { className: "controls runs" });

  const options = () => ({ unit: units.value, weight: Number(smoothing.value), training: training.box.checked });
  const show = () => {
    const isMean = means.box.checked;
    list.replaceChildren(...(isMean ? groupBoxes : boxes).map(({ label }) => label));
    document.getElementById("curve-second").previousElementSibling.textContent = metrics[metric.selectedIndex][1];
    for (const [place, kind, isLog] of [["loss", "val_loss", logLoss.box.checked], ["second", metric.value, logSecond.box.checked]]) {
      const traces = isMean
        ? groups.flatMap(({ name, runs }, number) => (groupBoxes[number].box.checked
          ? meanTraces(runs.map((run) => curves[run]), name, kind, { ...options(), colour: colour(number) }) : []))
        : curves.flatMap((run, number) => (boxes[number].box.checked ? tracesOf(run, kind, { ...options(), colour: colour(number) }) : []));
      draw(`curve-${place}`, traces, curveLayout(units.value, isLog, curves));
    }
  };
  const button = (text, wanted) => {
    const press = made("button", { type: "button", textContent: text });
    press.addEventListener("click", () => {
      (means.box.checked ? groupBoxes : boxes).forEach(({ box }, number) => { box.checked = wanted(number); });
      show();
    });
    return press;
  };
  controls.append(button("all", () => true), button("best", (number) => number === 0), button("none", () => false),
    made("label", {}, "over ", units), ...(metrics.length > 1 ? [made("label", {}, "metric ", metric)] : []), made("label", {}, "smoothing ", smoothing), logLoss.label, logSecond.label, training.label,
    ...(groups.length ? [means.label] : []));
  controls.after(list);
  for (const element of [controls, list]) element.addEventListener("change", show);
  smoothing.addEventListener("input", show);
  show();
});
