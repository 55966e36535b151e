"use strict";
// The live page: asks for the state every two seconds while it is visible, and changes what differs.
const EVERY_MS = 2000;
const RETRY_MS = 5000;
const byId = (id) => document.getElementById(id);
// Set a text only if it differs, so that a selection and a reader's place stay.
const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
// Make the children of a list those of the keys, in order: `make` builds a new one, `change` updates each.
const keyed = (parent, items, key, make, change) => {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let next = parent.firstElementChild;
  for (const item of items) {
    let child = known.get(key(item));
    if (child === undefined) {
      child = make(item);
      child.dataset.key = key(item);
    }
    known.delete(key(item));
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
    change(child, item);
  }
  for (const child of known.values()) child.remove();
};
const setLinks = (place, links) => keyed(place, links, ([label, address]) => `${label} ${address}`,
  ([label, href]) => made("a", { href, textContent: label, target: "_blank", rel: "noopener" }), () => {});
const setBar = (bar, share, label) => {
  bar.hidden = share === null;
  if (share !== null && bar.getAttribute("value") !== String(share)) bar.setAttribute("value", share);
  if (bar.getAttribute("aria-label") !== label) bar.setAttribute("aria-label", label);
};

const hiddenStates = new Set();
let [state, known, isPaused, timer, failures] = [null, new Map(), false, 0, 0];

const showPhases = ({ experiments }) => {
  byId("experiments").hidden = experiments.length === 0;
  keyed(byId("phases"), experiments, ({ name }) => name, ({ name }) => {
    const parts = { title: made("h3", { textContent: name }), links: made("span", { className: "links" }),
      phases: made("ul", { className: "phases" }), failures: made("ul", { className: "failures" }),
      study: made("p", { className: "quiet" }, "The study in optuna-dashboard: ", made("code"), ", then ", made("code", { textContent: "optuna-dashboard sqlite:///study.db" })) };
    return Object.assign(made("div", { className: "experiment" }, ...Object.values(parts)), { parts });
  }, ({ parts }, { phases, failures: failed, links, study }) => {
    setLinks(parts.links, links);
    parts.study.hidden = !study;
    say(parts.study.querySelector("code"), study);
    keyed(parts.phases, phases, ([name]) => name, () => made("li", {}, made("span"), made("progress", { max: 1 })),
      (item, [name, done, total, diverged]) => {
        const more = diverged ? `, ${diverged} diverged` : "";
        say(item.firstChild, `${name} ${done}/${total}${more}`);
        item.className = done === total ? "done" : "";
        setBar(item.lastChild, done / total, `${name}: ${done} of ${total}${more}`);
      });
    keyed(parts.failures, failed, ([text]) => text,
      ([text, address]) => made("li", { className: "state-failure" }, `${text} `, ...(address ? [made("a", { href: address, textContent: "log", target: "_blank", rel: "noopener" })] : [])), () => {});
  });
};

const showStates = ({ counts }) => {
  keyed(byId("states"), Object.entries(counts), ([name]) => name, ([name]) => {
    const { box, label } = checkBox(name, !hiddenStates.has(name));
    box.addEventListener("change", () => { hiddenStates[box.checked ? "delete" : "add"](name); showRuns(state); });
    return label;
  }, (label, [name, number]) => say(label.lastChild, `${number.toLocaleString("en-US")} ${name}`));
};

const newTest = (name) => made(name, {}, made("span"), made("small", { className: "interval" }));
const sayTest = ({ firstChild, lastChild }, [label, value, interval]) => {
  say(firstChild, `${label} ${value} `);
  say(lastChild, interval);
};
const newRow = () => {
  const cell = (name, values, ...children) => made(name, values, ...children);
  const parts = { name: made("code"), why: made("span", { className: "why" }), links: made("span", { className: "links" }),
    state: cell("td"), place: made("span"), bar: made("progress", { max: 1 }), loss: cell("td", { className: "n" }),
    value: made("span"), metric: made("small"), speed: made("span"), left: made("small"), first: newTest("summary"), others: made("div") };
  parts.tests = made("details", {}, parts.first, parts.others);
  const row = made("tr", {}, made("th", { scope: "row" }, parts.name, parts.links, parts.why), parts.state,
    cell("td", { className: "progress" }, parts.place, parts.bar), parts.loss, cell("td", { className: "n" }, parts.value, parts.metric),
    cell("td", { className: "n" }, parts.speed, parts.left), cell("td", {}, parts.tests));
  return Object.assign(row, { parts });
};
const changeRow = ({ parts }, run) => {
  say(parts.name, run.run);
  say(parts.why, run.why);
  setLinks(parts.links, run.links);
  say(parts.state, run.state);
  parts.state.className = run.is_failure ? "state-failure" : `state-${run.state}`;
  say(parts.place, run.place ? `${run.unit} ${run.place}` : "");
  setBar(parts.bar, run.share, `progress of ${run.run}`);
  say(parts.loss, run.loss);
  say(parts.value, run.value);
  say(parts.metric, run.metric.replace(/^val_/, "validation ").replaceAll("_", " "));
  say(parts.speed, run.speed);
  say(parts.left, run.left ? `${run.left} left` : run.saved && run.state !== "finished" ? `saved ${run.saved} ago` : "");
  parts.tests.hidden = run.tests.length === 0;
  if (run.tests.length === 0) return;
  sayTest(parts.first, run.tests[0]);
  keyed(parts.others, run.tests.slice(1), ([label]) => label, () => newTest("div"), sayTest);
};
const showRuns = ({ runs, more, counts }) => {
  keyed(document.querySelector("#runs tbody"), runs.filter((run) => !hiddenStates.has(run.state)), ({ key }) => key, newRow, changeRow);
  const total = Object.values(counts).reduce((sum, number) => sum + number, 0);
  say(byId("more"), total === 0 ? "No run has been planned here yet." : more ? `and ${more.toLocaleString("en-US")} more, which \`everstep status\` lists` : "");
};

const showWarnings = ({ warnings }) => {
  byId("warned").hidden = warnings.length === 0;
  keyed(byId("warnings"), warnings, (warning) => warning.join(" "),
    ([time, run, text]) => made("li", {}, `${new Date(time).toLocaleTimeString()} `, made("code", { textContent: run }), ` ${text}`), () => {});
};

// Tell a screen reader what happened, and not every number.
const tellNews = (before, after) => {
  const old = new Map((before?.runs ?? []).map((run) => [run.key, run.state]));
  const news = after.runs.filter((run) => old.has(run.key) && old.get(run.key) !== run.state).map((run) => `${run.run}: ${run.state}`);
  if (news.length) say(byId("news"), news.slice(0, 5).join("; "));
};

// Curves: Plotly is loaded when there is one to draw.
const curves = { byKey: new Map(), version: 0, places: new Map(), off: new Set(), draw: null, controls: null };
const loadPlotly = () => new Promise((resolve, reject) => {
  document.head.append(Object.assign(document.createElement("script"), { src: "plotly.js", onload: resolve, onerror: reject }));
});
const makeControls = (changed) => {
  const options = (...names) => made("select", {}, ...names.map((name) => made("option", { value: name, textContent: name })));
  const controls = { units: options("step", "epoch"), metric: made("select"), smoothing: made("input", { type: "range", min: 0, max: 0.98, step: 0.02, value: 0 }),
    log: checkBox("logarithmic loss", false), training: checkBox("training curves", true) };
  byId("curve-controls").append(made("label", {}, "over ", controls.units), made("label", {}, "metric ", controls.metric),
    made("label", {}, "smoothing ", controls.smoothing), controls.log.label, controls.training.label);
  byId("curve-controls").addEventListener("change", changed);
  controls.smoothing.addEventListener("input", changed);
  return controls;
};
const preferred = () => state.runs.find((run) => run.metric && run.metric !== "val_loss")?.metric;
const drawCurves = () => {
  const all = [...curves.byKey.values()];
  const names = [...new Set(all.flatMap((run) => Object.keys(run)))].filter((name) => name.startsWith("val_") && name !== "val_loss").sort();
  const { controls, colour, draw } = curves;
  const wanted = controls.metric.value || preferred();
  keyed(controls.metric, names, (name) => name, (name) => made("option", { value: name, textContent: name.slice(4).replaceAll("_", " ") }), () => {});
  if (names.includes(wanted)) controls.metric.value = wanted;
  controls.metric.parentElement.hidden = names.length < 2;
  const place = (key) => {
    if (!curves.places.has(key)) {
      const taken = new Set(curves.places.values()); // a run that is no longer drawn gives its colour back
      curves.places.set(key, Array.from({ length: taken.size + 1 }, (_, number) => number).find((number) => !taken.has(number)));
    }
    return curves.places.get(key);
  };
  keyed(byId("curve-runs"), all, ({ key }) => key, ({ key, name }) => {
    const { box, label } = checkBox(name, !curves.off.has(key), colour(place(key)));
    box.addEventListener("change", () => { curves.off[box.checked ? "delete" : "add"](key); drawCurves(); });
    return label;
  }, () => {});
  const [unit, weight] = [controls.units.value, Number(controls.smoothing.value)];
  const shown = all.filter(({ key }) => !curves.off.has(key));
  say(byId("second-name"), controls.metric.selectedOptions[0]?.textContent ?? "Metric");
  for (const [id, kind, isLog] of [["curve-loss", "val_loss", controls.log.box.checked], ["curve-second", controls.metric.value, false]]) {
    const traces = shown.filter((run) => run[kind]).flatMap((run) => tracesOf(run, kind, { unit, weight, training: controls.training.box.checked, colour: colour(place(run.key)) }));
    const { xaxis, ...layout } = curveLayout(unit, isLog, shown);
    draw(id, traces, { ...layout, xaxis: { ...xaxis, dtick: undefined }, uirevision: `${unit} ${kind} ${isLog}` });
  }
};
const updateCurves = async ({ curves: version, drawn }) => {
  say(byId("drawn"), drawn ? `Drawn: ${drawn}, those that train and then the latest.` : "");
  if (version === curves.version) return;
  const answer = await (await fetch(`curves?since=${curves.version}`)).json();
  curves.version = answer.version;
  for (const run of answer.changed) curves.byKey.set(run.key, run);
  for (const key of [...curves.byKey.keys()].filter((key) => !answer.keys.includes(key))) {
    curves.byKey.delete(key);
    curves.places.delete(key);
  }
  curves.byKey = new Map(answer.keys.map((key) => [key, curves.byKey.get(key)])); // in the order of the table
  byId("curves").hidden = curves.byKey.size === 0;
  if (curves.byKey.size === 0) return;
  if (curves.draw === null) {
    await loadPlotly();
    Object.assign(curves, figures());
    curves.controls = makeControls(drawCurves);
  }
  drawCurves();
};

const show = async (next) => {
  tellNews(state, next);
  state = next;
  document.title = `${next.title} · Everstep`;
  say(byId("title"), next.title);
  say(byId("place"), next.place);
  showPhases(next);
  showStates(next);
  showRuns(next);
  showWarnings(next);
  await updateCurves(next);
  for (const link of document.querySelectorAll("nav a")) link.hidden = byId(link.hash.slice(1)).hidden;
};
const complain = (text) => { byId("problem").hidden = !text; say(byId("problem"), text); };
const update = async () => {
  clearTimeout(timer);
  if (isPaused || document.hidden) return;
  try {
    const answer = await fetch("state", { signal: AbortSignal.timeout(30000) });
    if (!answer.ok) throw new Error((await answer.text()).trim());
    const next = await answer.json();
    await show(next);
    complain(next.problem);
    say(byId("updated"), `as of ${new Date(next.time).toLocaleTimeString()}`);
    timer = setTimeout(update, EVERY_MS);
  } catch (error) {
    console.error(error);
    complain(error instanceof TypeError || error.name === "TimeoutError"
      ? "No connection: `everstep serve` or the tunnel to it has ended. A new `everstep serve` prints a new address." : String(error.message));
    timer = setTimeout(update, RETRY_MS);
  }
};
byId("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  byId("pause").textContent = isPaused ? "continue" : "pause";
  update();
});
document.addEventListener("visibilitychange", update);
update();
