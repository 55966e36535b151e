// The chapter of learning curves: two figures, and what they show.
ready.then(({ data, draw, colour }) => {
  const { curves, groups, metrics, unit, first } = data;
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
  const several = curves.length > 1;
  controls.append(...(several ? [button("all", () => true), button(first, (number) => number === 0), button("none", () => false)] : []),
    made("label", {}, "over ", units), ...(metrics.length > 1 ? [made("label", {}, "metric ", metric)] : []), made("label", {}, "smoothing ", smoothing), logLoss.label, logSecond.label, training.label,
    ...(groups.length ? [means.label] : []));
  controls.after(list);
  for (const element of [controls, list]) element.addEventListener("change", show);
  smoothing.addEventListener("input", show);
  show();
});
