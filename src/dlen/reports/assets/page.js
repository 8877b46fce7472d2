"use strict";
// Plots are drawn when they come into view; the table sorts and filters; runs that are filtered out leave the plots.
(() => {
  const root = document.documentElement;
  const specs = new Map(); // element id -> {data, layout} as written by Python
  let hidden = new Set(); // keys of the runs that are filtered out

  const spec = (id) => {
    if (!specs.has(id)) specs.set(id, JSON.parse(document.getElementById(id).textContent));
    return specs.get(id);
  };

  const template = () => {
    const style = getComputedStyle(root);
    const ink = style.getPropertyValue("--ink"), line = style.getPropertyValue("--line"), paper = style.getPropertyValue("--paper");
    const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true, title: { standoff: 6 } };
    return { layout: {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, size: 12, family: "system-ui, sans-serif" },
      xaxis: axis, yaxis: axis, legend: { orientation: "h", y: -0.18, yanchor: "top" }, hoverlabel: { bgcolor: paper, font: { color: ink } },
      margin: { t: 30, r: 16, b: 50, l: 60 }, hovermode: "closest",
    } };
  };

  const visible = (trace) => {
    const run = trace.meta && trace.meta.run;
    if (run !== undefined && hidden.has(run)) return false;
    return trace.visible === undefined ? true : trace.visible;
  };

  const draw = (place, figure) => {
    const named = new Set(); // of a group of traces the first one that is left has the group's place in the legend
    const data = figure.data.map((trace) => {
      const now = { ...trace, visible: visible(trace) };
      if (trace.legendgroup === undefined || now.visible !== true) return now;
      now.showlegend = trace.name !== undefined && !named.has(trace.legendgroup);
      named.add(trace.legendgroup);
      return now;
    });
    const layout = { ...figure.layout, template: template(), autosize: true };
    place.style.height = (figure.layout.height || 380) + "px";
    place.style.width = figure.layout.xaxis2 && innerWidth < 640 ? "640px" : ""; // panels need room; the figure scrolls
    place.dataset.drawn = "yes";
    const options = { displaylogo: false, responsive: true };
    if (matchMedia("(hover: none)").matches) options.displayModeBar = false; // a finger needs no buttons
    return Plotly.react(place, data, layout, options);
  };

  const figureOf = (place) => {
    if (place.dataset.run === undefined) return spec(place.dataset.figure);
    return spec("run-" + place.dataset.run).plots[Number(place.dataset.index)].figure;
  };
  const drawn = () => document.querySelectorAll('.plot[data-drawn="yes"]');
  const redraw = () => drawn().forEach((place) => draw(place, figureOf(place)));
  const drawAll = () => document.querySelectorAll(".plot").forEach((place) => draw(place, figureOf(place)));

  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && entry.target.dataset.drawn !== "yes") draw(entry.target, figureOf(entry.target));
    }
  }, { rootMargin: "400px" });
  const watch = (place) => {
    place.style.height = (Number(place.dataset.height) || 380) + "px";
    watcher.observe(place);
  };

  // Theme: the system's, until the button says otherwise. Paper is white.
  const system = matchMedia("(prefers-color-scheme: dark)");
  const memory = { get: () => { try { return localStorage.getItem("dlen-theme"); } catch { return null; } },
                   set: (value) => { try { localStorage.setItem("dlen-theme", value); } catch { /* then not */ } } };
  const theme = () => memory.get() || (system.matches ? "dark" : "light");
  const paint = () => { root.dataset.theme = theme(); redraw(); };
  system.addEventListener("change", paint);
  document.getElementById("theme").addEventListener("click", () => {
    memory.set(root.dataset.theme === "dark" ? "light" : "dark");
    paint();
  });
  addEventListener("beforeprint", () => { root.dataset.theme = "light"; drawAll(); });
  addEventListener("afterprint", paint);

  // Tables: a click on a header sorts by it, a second one the other way round. What is empty stays at the end.
  const value = (cell) => {
    if (cell.dataset.value === undefined) return cell.textContent.trim() || null;
    return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  };
  const sort = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const compare = (a, b) => {
      const x = value(a.cells[column]), y = value(b.cells[column]);
      if (x === null || y === null) return (x === null) - (y === null);
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return descending ? -order : order;
    };
    body.append(...rows.sort(compare));
    [...table.tHead.rows[0].cells].forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        const first = head.classList.contains("text") ? "ascending" : "descending"; // figures: the highest first
        sort(table, column, (now === null ? first : now === "ascending" ? "descending" : "ascending") === "descending");
      });
    });
  });

  // Filter: every word must be in the row; column:word looks into one column, column>number compares.
  const runs = document.getElementById("runs");
  // A column by its key, by the only key that begins or ends so, or none.
  const columnOf = (name, keys) => {
    const exact = keys.indexOf(name);
    if (exact >= 0) return exact;
    const near = keys.filter((key) => key.startsWith(name) || key.endsWith("/" + name));
    return near.length === 1 ? keys.indexOf(near[0]) : -1;
  };
  const parse = (word, keys) => {
    for (const [, name, operator, wanted] of [...word.matchAll(/^(.+?)(:|>=|<=|>|<)(.+)$/g)]) {
      const column = columnOf(name, keys);
      return column < 0 ? { unknown: name } : { column, operator, wanted };
    }
    return { text: word };
  };
  const test = (row, { text, column, operator, wanted }) => {
    if (text !== undefined) return row.textContent.toLowerCase().includes(text);
    const cell = row.cells[column];
    if (operator === ":") return cell.textContent.toLowerCase().includes(wanted);
    const number = value(cell), limit = Number(wanted);
    if (typeof number !== "number") return false;
    return { ">": number > limit, "<": number < limit, ">=": number >= limit, "<=": number <= limit }[operator];
  };
  const filter = () => {
    const keys = [...runs.tHead.rows[0].cells].map((head) => head.dataset.key.toLowerCase().replaceAll(" ", "_"));
    const all = document.getElementById("filter").value.toLowerCase().split(/\s+/).filter(Boolean).map((w) => parse(w, keys));
    const words = all.filter((word) => word.unknown === undefined);
    const unknown = all.filter((word) => word.unknown !== undefined).map((word) => word.unknown);
    hidden = new Set();
    const rows = [...runs.tBodies[0].rows];
    for (const row of rows) {
      const shown = words.every((word) => test(row, word));
      row.hidden = !shown;
      if (!shown) hidden.add(row.dataset.run);
    }
    const told = unknown.length ? `; there is no column ${unknown.join(", ")}` : "";
    document.getElementById("count").textContent = `${rows.length - hidden.size} of ${rows.length} runs${told}`;
    keys.forEach((key, column) => { // a column without a value in any row that is left only takes room
      const none = hidden.size === rows.length; // then the header stays as it is
      const empty = !none && rows.every((row) => row.hidden || value(row.cells[column]) === null);
      for (const row of [runs.tHead.rows[0], ...rows]) row.cells[column].style.display = empty ? "none" : "";
    });
    redraw();
  };
  if (runs) {
    let waiting = 0;
    document.getElementById("filter").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
    filter();
  }

  // One run: its plots and its config.
  const choice = document.getElementById("run-choice");
  const show = () => {
    const run = choice.value, found = spec("run-" + run), place = document.getElementById("run-plots");
    place.querySelectorAll(".plot").forEach((old) => { watcher.unobserve(old); Plotly.purge(old); });
    place.replaceChildren(...found.plots.map((plot, index) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption"), plotPlace = document.createElement("div");
      const title = document.createElement("b");
      title.textContent = plot.title;
      caption.append(title, plot.note ? " " + plot.note : "");
      if (plot.wide) figure.className = "wide";
      Object.assign(plotPlace.dataset, { run, index: String(index), height: String(plot.figure.layout.height || 380) });
      plotPlace.className = "plot";
      figure.append(caption, plotPlace);
      watch(plotPlace);
      return figure;
    }));
    document.getElementById("run-about").textContent = found.about;
    document.getElementById("run-config").textContent = found.config;
    if (runs) for (const row of runs.tBodies[0].rows) row.classList.toggle("chosen", row.dataset.run === run);
  };
  root.dataset.theme = theme();
  document.querySelectorAll(".plot").forEach(watch);
  if (choice) {
    choice.addEventListener("change", show);
    runs.querySelectorAll("a[data-run]").forEach((link) => link.addEventListener("click", () => { choice.value = link.dataset.run; show(); }));
    show();
  }
})();
