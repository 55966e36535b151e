// Figures: the functions that draw with Plotly, once it is loaded.
const figures = () => {
  // Forty colours that differ as much as possible, and can be seen on the light and on the dark page.
  const PALETTE = ["#3b82f6", "#f97316", "#10b981", "#e11d48", "#8b5cf6", "#d4a106", "#06b6d4", "#ec4899", "#84cc16", "#8a7f76",
    "#006900", "#e1a5ff", "#783c78", "#003ce1", "#e100ff", "#964b00", "#b400b4", "#006987", "#009600", "#c396a5", "#7800e1", "#c378ff",
    "#ffa587", "#a5c3a5", "#965a96", "#b4005a", "#c36900", "#ff78c3", "#969600", "#5a783c", "#5a5ac3", "#0096a5", "#8796e1", "#78c3ff",
    "#ff5aff", "#5a5a3c", "#b469c3", "#c36978", "#1e5aff", "#00b400"];
  const colour = (number) => PALETTE[number % PALETTE.length];
  const config = { displayModeBar: false, responsive: true };
  const drawn = new Map();
  const POWERS = [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6];
  const tickText = (number) => (number < 1e-3 ? number.toExponential(0) : String(number));
  const logTicks = (digits) => {
    const tickvals = POWERS.flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)));
    return { tickvals, ticktext: tickvals.map(tickText) };
  };
  const [FEW_TICKS, MANY_TICKS] = [[1, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9]].map(logTicks);
  // The largest value of an axis divided by its smallest one.
  const ratio = (traces, axis) => {
    const [key, name] = [axis[0], axis.replace("axis", "")];
    const own = traces.filter((trace) => (trace[`${key}axis`] ?? key) === name && Array.isArray(trace[key]));
    const values = own.flatMap((trace) => trace[key]).filter((value) => value > 0);
    return Math.max(...values) / Math.min(...values);
  };

  // Plotly does not use style sheets, so its colours are read from the page's.
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink"), line: of("--line"), card: of("--card") };
  };
  const themed = (layout, traces) => {
    const { ink, line, card } = colours();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const all = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "inherit", size: 13 },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink }, namelength: -1 } };
    for (const name of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))])) {
      all[name] = { ...axis, ...layout[name], ...(layout[name]?.type === "log" ? (ratio(traces, name) < 8 ? MANY_TICKS : FEW_TICKS) : {}) };
    }
    if (layout.annotations) all.annotations = layout.annotations.map((note) => ({ ...note, bgcolor: card, font: { ...note.font, color: ink } }));
    return all;
  };
  // Draw a figure, or change it if it is drawn already.
  const draw = (id, traces, layout) => {
    const place = document.getElementById(id);
    drawn.set(place, { traces, layout });
    return Plotly.react(place, traces, themed(layout, traces), config);
  };
  const redraw = () => drawn.forEach(({ traces, layout }, place) => {
    const current = { ...layout };
    for (const key of Object.keys(place.layout).filter((name) => /^[xy]axis\d*$/.test(name))) {
      const { range, autorange } = place.layout[key];
      current[key] = { ...layout[key], range, autorange };
    }
    Plotly.react(place, traces, themed(current, traces), config);
  });

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  // Print dark on white.
  const root = document.documentElement;
  const { theme } = root.dataset;
  addEventListener("beforeprint", () => { root.dataset.theme = "light"; redraw(); });
  addEventListener("afterprint", () => { root.dataset.theme = theme; redraw(); });
  return { colour, draw, PALETTE };
};

const made = (name, values = {}, ...children) => {
  const element = Object.assign(document.createElement(name), values);
  element.append(...children);
  return element;
};
// A labelled check box, with the colour of what it shows or hides.
const checkBox = (text, checked, swatch) => {
  const box = made("input", { type: "checkbox", checked });
  const colour = swatch ? [made("i")] : [];
  if (swatch) colour[0].style.background = swatch;
  return { box, label: made("label", {}, box, ...colour, text) };
};
