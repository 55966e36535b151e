// Plotly and the data are unpacked once; `ready` gives them and the functions that draw to the scripts below.
const ready = Promise.all([unpacked("plotly"), unpacked("data")]).then(([library, text]) => {
  document.head.append(Object.assign(document.createElement("script"), { textContent: library }));
  return { data: JSON.parse(text), ...figures() };
});

ready.then(({ data, draw, colour, PALETTE }) => {
  for (const { name, data: traces, layout } of data.figures) {
    const place = document.getElementById(`figure-${name}`);
    const panels = Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).length;
    if (panels > 1) place.style.minWidth = `${panels * 12}rem`;
    if (name.startsWith("parallel")) place.style.minWidth = `${layout.xaxis.tickvals.length * 6}rem`;
    draw(`figure-${name}`, traces, { margin: { l: 60, r: 20, t: 15, b: 50 }, colorway: PALETTE, legend: { orientation: "h", y: 1.12 }, ...layout });
  }

  // The diagrams of classes share their check boxes.
  const controls = document.querySelector(".figure-controls");
  if (!controls) return;
  const diagrams = data.figures.filter(({ data: traces }) => traces.some(({ meta }) => meta));
  const names = [...new Set(diagrams.flatMap(({ data: traces }) => traces.map(({ meta }) => meta)))].filter((name) => name !== "diagonal");
  const boxes = names.map((name, number) => checkBox(name, true, colour(number)));
  const show = () => {
    for (const { name, data: traces, layout } of diagrams) {
      const chosen = traces.map((trace) => (trace.meta === "diagonal"
        ? { ...trace, line: { color: PALETTE[9], width: 1.5, dash: "dot" } }
        : { ...trace, visible: boxes[names.indexOf(trace.meta)].box.checked, line: { ...trace.line, color: colour(names.indexOf(trace.meta)) },
          marker: { color: colour(names.indexOf(trace.meta)), size: 5 } }));
      draw(`figure-${name}`, chosen, { margin: { l: 55, r: 10, t: 10, b: 45 }, ...layout });
    }
  };
  controls.append(...boxes.map(({ label }) => label));
  controls.addEventListener("change", show);
  show();
});

ready.catch((error) => {
  console.error(error);
  for (const place of document.querySelectorAll(".plot")) {
    place.textContent = "This browser is too old to draw the figure (it needs DecompressionStream, of 2023).";
  }
});
