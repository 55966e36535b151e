// Traces of learning curves: of each run the validation, the training, and the place whose weights are kept.

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
