"use strict";
const page = document.documentElement, tip = document.getElementById("tip");
const data = JSON.parse(document.getElementById("data").textContent);
const column = (name) => data.runs.columns.indexOf(name);
const all = (query, root = document) => [...root.querySelectorAll(query)];
page.classList.add("js");

// Colours: as the system, light, dark.
const themes = ["system", "light", "dark"], button = document.getElementById("theme");
const kept = (name, value) => {
  try {
    if (value !== undefined) sessionStorage.setItem(name, value);
    return sessionStorage.getItem(name);
  } catch { return null; }
};
const paint = (theme) => {
  if (theme === "system") delete page.dataset.theme; else page.dataset.theme = theme;
  button.textContent = { system: "◐", light: "☀", dark: "☾" }[theme];
  button.setAttribute("aria-label", `Colours: ${theme === "system" ? "as the system" : theme}`);
  kept("theme", theme);
};
paint(themes.includes(kept("theme")) ? kept("theme") : "system");
button.onclick = () => paint(themes[(themes.indexOf(page.dataset.theme || "system") + 1) % 3]);

// Values on hover, on touch, and with the arrow keys of a focused figure.
const short = (value) => {
  if (Math.abs(value) < 1e-3 && value !== 0) return value.toExponential(2).replace("-", "−");
  return new Intl.NumberFormat("en", { maximumSignificantDigits: 4 }).format(value).replace("-", "−");
};
const show = (text, x, y) => {
  tip.textContent = text;
  tip.hidden = false;
  const box = tip.getBoundingClientRect(), room = 12;
  tip.style.left = `${Math.max(4, Math.min(x + room, innerWidth - box.width - 4))}px`;
  tip.style.top = `${y - box.height - room > 0 ? y - box.height - room : y + room}px`;
};
const hide = () => {
  tip.hidden = true;
  all(".at").forEach((one) => one.classList.remove("at"));
  all(".cross").forEach((one) => { one.style.visibility = "hidden"; });
};
const said = (one) => {
  if (one.dataset.t) return one.dataset.t;
  const row = data.runs.rows[one.dataset.i], x = one.closest("svg").dataset.x, value = row[column(x)];
  const words = x === "train_seconds" ? `${short(value)} s` : `${short(100 * value)} %`;
  return `${row[column("name")]}\n${short(100 * row[column("accuracy")])} % accuracy\n${words}, ${x.replaceAll("_", " ")}`;
};
const middle = (one) => {
  const box = one.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
};
const point = (one) => {
  hide();
  one.classList.add("at");
  show(said(one), ...middle(one));
};
const cross = (svg, step) => {
  const { left, right, last, run, lines } = svg.dataset, box = svg.getBoundingClientRect();
  const at = Math.max(0, Math.min(+last, step)), x = +left + (at / last) * (right - left), scale = box.width / svg.viewBox.baseVal.width;
  const line = svg.querySelector(".cross"), words = [`step ${short(Math.round(at))}`];
  for (const pair of lines.split(";")) {
    const [metric, name] = pair.split("="), found = value(run, metric, at);
    if (found !== null) words.push(`${name} ${/accuracy|dead|removed/.test(name) ? `${short(100 * found)} %` : short(found)}`);
  }
  line.setAttribute("transform", `translate(${x} 0)`);
  line.style.visibility = "visible";
  show(words.join("\n"), box.left + x * scale, Math.max(box.top, 0) + 40);
  svg.dataset.at = at;
};
const value = (run, metric, step) => {
  if (metric === "removed") {
    const cuts = (data.cuts[run] || []).filter((cut) => cut[0] <= step), row = data.runs.rows.find((one) => one[0] === run);
    return cuts.length ? 1 - cuts.at(-1)[2] / (row[column("neurons_dense")] || cuts.at(-1)[2]) : 0;
  }
  const points = (data.series[run] || {})[metric] || [];
  let found = null;
  for (const [at, number] of points) if (at <= step) found = number; else break;
  return found;
};
for (const svg of all(".panel svg")) {
  const marks = () => all("[data-t],[data-i]", svg);
  const near = (event) => {
    const direct = event.target.closest("[data-t],[data-i]");
    if (direct) return direct;
    let best = null, least = 26;
    for (const one of svg.classList.contains("points") ? marks() : []) {
      const [x, y] = middle(one), distance = Math.hypot(x - event.clientX, y - event.clientY);
      if (distance <= least) [best, least] = [one, distance];
    }
    return best;
  };
  const follows = svg.classList.contains("course");
  svg.addEventListener("pointermove", (event) => {
    if (follows) {
      const { left, right, last } = svg.dataset, box = svg.getBoundingClientRect();
      const x = (event.clientX - box.left) / (box.width / svg.viewBox.baseVal.width);
      return cross(svg, ((x - left) / (right - left)) * last);
    }
    const one = near(event);
    if (one) point(one); else hide();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const turn = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!turn) return;
    if (follows) cross(svg, +(svg.dataset.at ?? (turn > 0 ? -1 : 1) * svg.dataset.last / 50) + (turn * svg.dataset.last) / 50);
    else {
      const list = marks();
      if (!list.length) return;
      const now = list.findIndex((one) => one.classList.contains("at"));
      point(list[now < 0 ? (turn > 0 ? 0 : list.length - 1) : (now + turn + list.length) % list.length]);
    }
    event.preventDefault();
  });
}

// A legend's entry brings its method forward.
for (const entry of all(".legend button")) {
  entry.onclick = () => {
    const figure = entry.closest("section"), panels = figure.querySelector(".panels"), on = entry.getAttribute("aria-pressed") !== "true";
    all(".legend button", figure).forEach((one) => one.setAttribute("aria-pressed", one === entry && on));
    panels.classList.toggle("focus", on);
    all("[data-m]", panels).forEach((one) => one.classList.toggle("on", one.dataset.m === entry.dataset.m));
  };
}

// Headings sort: numbers from the largest, words from A; dashes last.
for (const heading of all("thead th")) {
  heading.querySelector("button").onclick = () => {
    const table = heading.closest("table"), at = heading.cellIndex, numeric = heading.classList.contains("n");
    const before = heading.getAttribute("aria-sort"), up = before === "none" ? !numeric : before === "descending";
    all("th[aria-sort]", table).forEach((one) => one.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.cells[at], text = cell.dataset.v ?? cell.textContent;
      return text === "–" ? null : text !== "" && !isNaN(text) ? +text : text;
    };
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]);
    const order = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true }));
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : up ? order(a, b) : order(b, a)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
  };
}

// One run at a time.
const pick = document.getElementById("pick");
if (pick) {
  const choose = () => all("article.run").forEach((one) => one.classList.toggle("away", one.id !== pick.value));
  if (kept("run") && all("option", pick).some((one) => one.value === kept("run"))) pick.value = kept("run");
  pick.onchange = () => { choose(); kept("run", pick.value); };
  choose();
}

// The numbers, to take away.
const give = (name, type, text) => {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
const quoted = (value) => {
  const plain = value === null ? "" : String(value);
  const text = typeof value === "string" && /^[=+\-@\t\r]/.test(plain) ? `'${plain}` : plain; // no formula in a spreadsheet
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};
document.getElementById("csv").onclick = () =>
  give("runs.csv", "text/csv", [data.runs.columns, ...data.runs.rows].map((row) => row.map(quoted).join(",")).join("\n") + "\n");
document.getElementById("json").onclick = () => give("report.json", "application/json", JSON.stringify(data, null, 1));

// A page that follows a live run comes again, where the reader was.
if (page.dataset.refresh) setTimeout(() => location.reload(), 1000 * page.dataset.refresh);
