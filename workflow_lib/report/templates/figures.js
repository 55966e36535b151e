// Figures: the functions that draw with Plotly, once it is loaded.
const figures = () => {
  // Forty colours that differ as much as possible, each with a contrast of 3 to the light and to the dark page.
  const PALETTE = ["#3b82f6", "#ea690b", "#0f9f6e", "#e11d48", "#8b5cf6", "#b08504", "#0891b2", "#ec4899", "#5f9e0a", "#8a7f76",
    "#846084", "#9090b4", "#c08484", "#60786c", "#9c603c", "#78783c", "#c00cb4", "#606c84", "#ff18ff", "#d82400", "#3c783c", "#b478c0",
    "#906060", "#008484", "#6c9c90", "#ff543c", "#c08460", "#909000", "#b4486c", "#849090", "#3c60e4", "#b46c0c", "#9c906c", "#f06078",
    "#789c6c", "#547884", "#846c48", "#a8849c", "#9084e4", "#c06054"];
  const colour = (number) => PALETTE[number % PALETTE.length];
  const config = { displayModeBar: false, responsive: true };
  const drawn = new Map();
  const POWERS = [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6];
  const tickText = (number) => (number < 1e-3 ? number.toExponential(0) : String(number));
  const logTicks = (digits) => {
    const tickvals = POWERS.flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`)));
    return { tickvals, ticktext: tickvals.map(tickText) };
  };
  const TICKS = [[4, [1, 2, 3, 4, 5, 6, 7, 8, 9]], [30, [1, 2, 5]], [Infinity, [1, 3]]].map(([most, digits]) => [most, logTicks(digits)]);
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
      all[name] = { ...axis, ...layout[name], ...(layout[name]?.type === "log" ? TICKS.find(([most]) => !(ratio(traces, name) >= most))[1] : {}) };
    }
    if (layout.annotations) all.annotations = layout.annotations.map((note) => ({ ...note, bgcolor: card, font: { ...note.font, color: ink } }));
    return all;
  };
  // Plotly takes some HTML for markup: names, settings and categories are shown as they are, and a line end as a break.
  const TEXTS = new Set(["name", "text", "hovertext", "title", "ticktext", "categoryarray", "x", "y"]);
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("\n", "<br>");
  const asText = (value, isText = false) => {
    if (typeof value === "string") return isText ? escaped(value) : value;
    if (Array.isArray(value)) return value.map((part) => asText(part, isText));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, asText(part, TEXTS.has(key))]));
  };
  // Draw a figure, or change it if it is drawn already.
  const draw = (id, given, givenLayout) => {
    const place = document.getElementById(id);
    const [traces, layout] = [asText(given), asText(givenLayout)];
    drawn.set(place, { traces, layout });
    const done = Plotly.react(place, traces, themed(layout, traces), config);
    // A screen reader is told the name of the figure, and not the marks of its axes one by one.
    place.querySelector(".svg-container")?.setAttribute("aria-hidden", "true");
    return done;
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
  const pictures = () => document.querySelectorAll(".plot .main-svg");
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    redraw();
    // The columns of the paper have other widths than those of the window: with a view box, figures are scaled to them.
    for (const picture of pictures()) {
      picture.setAttribute("viewBox", `0 0 ${picture.getAttribute("width")} ${picture.getAttribute("height")}`);
      picture.setAttribute("preserveAspectRatio", "xMinYMin");
    }
  });
  addEventListener("afterprint", () => {
    for (const picture of pictures()) picture.removeAttribute("viewBox");
    root.dataset.theme = theme;
    redraw();
  });
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
