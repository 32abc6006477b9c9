"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const [NAME, STATE, NOTES, LINKS, GALLERY, LABEL, VALUES] = [0, 1, 2, 3, 4, 5, 6];
  const CHUNK = 60;
  const WORDS = { failed: "✕ failed", skipped: "skipped: there already", planned: "not begun" };
  const KINDS = { iVBO: "image/png", UklG: "image/webp", "/9j/": "image/jpeg" };
  const SHOWN = /\.(avif|bmp|gif|jpe?g|jfif|png|webp)$/i; // what browsers show

  const picture = (base64) => `data:${KINDS[base64.slice(0, 4)] || "image/png"};base64,${base64}`;
  const make = (kind, name, text) => {
    const node = document.createElement(kind);
    if (name) node.className = name;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const bytes = (value) => {
    for (const unit of ["bytes", "kB", "MB", "GB"]) {
      if (value < 1000 || unit === "GB") return `${unit === "bytes" || value >= 100 ? Math.round(value) : value.toFixed(1)} ${unit}`;
      value /= 1000;
    }
  };
  const shown = (value, column) => {
    if (value === "") return "";
    if (value === null) return column.none || "";
    if (column.kind === "bytes") return bytes(value);
    return column.kind === "number" && typeof value === "number" ? value.toFixed(column.digits) : String(value);
  };

  // -- the table ---------------------------------------------------------------------------------------------

  // The order in which rows come is the worst first; -1 stands for it, -2 for names.
  let order = { column: -1, down: false }, chosen = data.rows, drawn = 0;
  const titles = [["Worst first", -1], ["Picture", -2], ...data.columns.map((column, n) => [column.title, n])];

  const value = (row, column) => (column === -2 ? row[NAME] : row[VALUES][column]);
  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a - b;
    return String(a).localeCompare(String(b), undefined, { numeric: true });
  };

  function arrange() {
    const wanted = $("find").value.trim().toLowerCase(), state = $("show").value;
    chosen = data.rows.filter((row) => {
      if (state === "noted" ? !row[NOTES].length : state && row[STATE] !== state) return false;
      return !wanted || [row[NAME], ...row[NOTES], ...row[VALUES].filter((one) => typeof one === "string")]
        .some((text) => text.toLowerCase().includes(wanted));
    });
    if (order.column !== -1) {
      const sign = order.down ? -1 : 1, empty = (one) => one === "";
      const lossless = (one) => (one === null ? Infinity : one);
      chosen = chosen.map((row) => [value(row, order.column), row]).sort(([a], [b]) => // what is missing comes last
        empty(a) - empty(b) || sign * compare(lossless(a), lossless(b))).map(([, row]) => row);
    } else if (order.down) chosen = [...chosen].reverse();
    $("rows").replaceChildren();
    drawn = 0;
    grow();
    const all = data.rows.length;
    $("count").textContent = chosen.length === all ? `${all.toLocaleString("en")} rows` : `${chosen.length.toLocaleString("en")} of ${all.toLocaleString("en")} rows`;
    for (const head of $("head").children) {
      const mine = Number(head.dataset.column) === order.column;
      if (mine) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    $("order").value = order.column;
  }

  function grow() {
    const part = document.createDocumentFragment();
    for (const row of chosen.slice(drawn, drawn + CHUNK)) part.append(line(row));
    drawn = Math.min(drawn + CHUNK, chosen.length);
    if (!chosen.length) {
      const cell = make("td", "empty", "No picture fits.");
      cell.colSpan = data.columns.length + 1;
      part.append(make("tr"));
      part.lastChild.append(cell);
    }
    $("rows").append(part);
    $("more").hidden = drawn >= chosen.length;
    $("more").textContent = `Show more (${(chosen.length - drawn).toLocaleString("en")} left)`;
  }

  function line(row) {
    const tr = make("tr"), first = make("td", "picture"), entry = make("div", "entry"), text = make("div");
    const gallery = data.galleries[row[GALLERY]], thumb = make("div", "thumb");
    if (gallery && gallery.thumbnail) {
      const image = make("img");
      image.src = picture(gallery.thumbnail);
      image.alt = `Thumbnail of ${row[NAME]}`;
      image.loading = "lazy";
      thumb.append(image);
    } else thumb.textContent = row[STATE] === "failed" ? "✕" : "–";
    const open = make("button", "open", row[NAME]);
    open.type = "button";
    text.append(open);
    if (WORDS[row[STATE]]) text.append(make("span", `state ${row[STATE]}`, WORDS[row[STATE]]));
    for (const note of row[NOTES].slice(0, 2)) text.append(make("span", `state ${row[STATE] === "failed" ? "failed" : "noted"}`, row[STATE] === "failed" ? note : `▲ ${note}`));
    entry.append(thumb, text);
    first.append(entry);
    tr.append(first);
    data.columns.forEach((column, n) => {
      const cell = make("td", `${column.kind} ${column.key}`, shown(row[VALUES][n], column));
      cell.dataset.title = column.short || column.title;
      if (!cell.textContent) cell.classList.add("blank");
      tr.append(cell);
    });
    tr.addEventListener("click", () => show(row));
    return tr;
  }

  function sort(column) {
    const numeric = column >= 0 && data.columns[column].kind !== "text";
    order = order.column === column ? { column, down: !order.down } : { column, down: numeric };
    arrange();
  }

  for (const [title, column] of titles) {
    const option = make("option", "", title);
    option.value = column;
    $("order").append(option);
    if (column === -1) continue;
    const head = make("th", column >= 0 ? data.columns[column].kind : ""), button = make("button", "", column >= 0 && data.columns[column].short || title);
    head.scope = "col";
    head.dataset.column = column;
    button.type = "button";
    button.title = `Sort by ${title.toLowerCase()}`;
    button.addEventListener("click", () => sort(column));
    head.append(button);
    $("head").append(head);
  }
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  let waiting;
  $("find").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(arrange, 120); });
  $("show").addEventListener("change", arrange);
  $("order").addEventListener("change", () => { order = { column: NaN }; sort(Number($("order").value)); });
  $("turn").addEventListener("click", () => sort(order.column));
  $("more").addEventListener("click", grow);
  new IntersectionObserver((seen) => { if (seen.some((one) => one.isIntersecting) && drawn < chosen.length) grow(); }, { rootMargin: "600px" }).observe($("more"));

  // -- the viewer --------------------------------------------------------------------------------------------

  const viewer = $("viewer"), stage = $("stage"), slider = $("slider");
  const images = [$("first"), $("second"), $("only")];
  let current = null, view = { x: 0, y: 0, scale: 1 }, size = [1, 1], mode = "slider", whole = false;

  const one = () => 1 / window.devicePixelRatio;
  const box = () => stage.getBoundingClientRect();

  function place() {
    const { width, height } = box();
    slider.style.setProperty("--height", `${height}px`);
    for (const axis of [0, 1]) { // the picture stays in sight: centred where it is smaller, without a gap where not
      const room = [width, height][axis], extent = size[axis] * view.scale, key = "xy"[axis];
      view[key] = extent <= room ? (room - extent) / 2 : Math.min(0, Math.max(room - extent, view[key]));
    }
    for (const image of images) {
      image.style.width = `${size[0]}px`;
      image.style.height = `${size[1]}px`;
      image.style.transform = `translate(${Math.round(view.x)}px, ${Math.round(view.y)}px) scale(${view.scale})`;
      image.classList.toggle("crisp", view.scale >= 2 * one() && mode !== "map");
    }
    $("scale").textContent = `${Math.round(view.scale / one() * 100)}%`;
  }

  function zoom(factor, at) {
    const { left, top, width, height } = box();
    const x = at ? at.clientX - left : width / 2, y = at ? at.clientY - top : height / 2;
    const scale = Math.min(16 * one(), Math.max(0.05 * one(), view.scale * factor)), ratio = scale / view.scale;
    view = { x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio, scale };
    place();
  }

  function reset(scale) {
    const { width, height } = box();
    view = { scale, x: (width - size[0] * scale) / 2, y: (height - size[1] * scale) / 2 };
    place();
  }

  const fit = () => { const { width, height } = box(); reset(Math.min(width / size[0], height / size[1])); };

  function describe(gallery) {
    const window_ = gallery && gallery.window;
    if (!gallery) return "";
    const [width, height] = gallery.size;
    if (whole || !window_ || window_[2] === width && window_[3] === height) return `the whole picture, ${width} × ${height} pixels`;
    return `${window_[2]} × ${window_[3]} of ${width} × ${height} pixels, where most has changed (from ${window_[0]}, ${window_[1]})`;
  }

  const words = (label) => (label === data.before ? "Before" : label === "after" ? "After" : label);

  function sources(row) { // label -> URL of what the slider can show
    const gallery = data.galleries[row[GALLERY]], found = new Map();
    if (whole) [data.before, row[LABEL]].forEach((label, n) => { if (row[LINKS][n] && SHOWN.test(row[LINKS][n])) found.set(label, row[LINKS][n]); });
    else if (gallery) for (const [label, crop] of Object.entries(gallery.crops)) found.set(label, picture(crop));
    return found;
  }

  function tell(row) { // the figures and notes of the result that is shown on the right
    $("facts").textContent = data.columns.map((column, n) => [column, shown(row[VALUES][n], column)])
      .filter(([, text]) => text)
      .map(([column, text]) => `${column.short || column.title}${column.kind === "text" ? ":" : ""} ${text}`).join(" · ");
    $("notes").replaceChildren(...row[NOTES].map((note) => make("li", "", note)));
    $("notes").className = row[STATE] === "failed" ? "failed" : "";
  }

  function draw() {
    const row = current, gallery = data.galleries[row[GALLERY]], found = sources(row);
    const label = $("right").value || row[LABEL];
    const residual = gallery && !whole && gallery.residuals[label], map = gallery && gallery.maps[label];
    const possible = { slider: found.size > 0, residual: Boolean(residual), map: Boolean(map) };
    if (!possible[mode]) mode = "slider";
    for (const input of document.getElementsByName("mode")) {
      input.disabled = !possible[input.value] && input.value !== "slider";
      input.checked = input.value === mode;
    }
    const two = mode === "slider" && found.size > 1, left = $("left").value, right = $("right").value;
    if (!two && document.activeElement === slider) stage.focus({ preventScroll: true }); // else the keys would go nowhere
    slider.hidden = !two;
    $("single").hidden = two || !possible[mode];
    $("tag-left").textContent = two ? words(left) : mode === "slider" && found.size ? words([...found.keys()][0]) : "";
    $("tag-right").textContent = two ? words(right) : "";
    $("missing").hidden = possible[mode];
    $("missing").textContent = row[STATE] === "failed" ? "There is no result to show: the picture failed." :
      "This page holds no crops of this picture: the crops of worse ones take the place that --report-size allows. The links below lead to the pictures themselves.";
    $("left-choice").hidden = $("right-choice").hidden = found.size < 3;
    if (two) {
      [[images[0], left], [images[1], right]].forEach(([image, name]) => { image.src = found.get(name); image.alt = `${row[NAME]}, ${words(name)}`; });
    } else if (possible[mode]) {
      images[2].src = mode === "slider" ? [...found.values()][0] : picture(mode === "map" ? map : residual);
      images[2].alt = mode === "map" ? `Where ${row[NAME]} has changed, and how much` : mode === "residual" ? `What has changed in ${row[NAME]}, ${data.gain} times` : row[NAME];
    }
    tell(data.rows.find((other) => row[GALLERY] >= 0 && other[GALLERY] === row[GALLERY] && other[LABEL] === label) || row);
    $("legend").hidden = mode !== "map";
    $("top").textContent = `${data.top} of 255 or more`;
    $("caption").textContent = mode === "map" ? `Mean difference to the source, ${label === "after" ? "" : `${label}, `}over the whole picture`
      : mode === "residual" ? `${words(label)} minus before, ${data.gain} times, about middle grey` : possible.slider ? describe(gallery) : "";
  }

  function measure(then) { // calls `then` when the size of what is shown is known
    const image = slider.hidden ? images[2] : images[1], row = current;
    const gallery = data.galleries[row[GALLERY]];
    if (mode === "map" && gallery) { size = gallery.size; then(); return; }
    const ready = () => { if (image.naturalWidth) { size = [image.naturalWidth, image.naturalHeight]; then(); } };
    if (image.complete) ready();
    image.onload = ready;
    image.onerror = () => { $("missing").hidden = false; $("missing").textContent = "The picture does not lie beside this page."; };
  }

  function show(row) {
    current = row;
    whole = false;
    const found = sources(row), names = [...found.keys()];
    if (names[0] !== data.before && found.has(data.before)) names.unshift(...names.splice(names.indexOf(data.before), 1));
    for (const side of ["left", "right"]) $(side).replaceChildren(...names.map((name) => { const option = make("option", "", words(name)); option.value = name; return option; }));
    if (names.length) {
      $("left").value = names[0];
      $("right").value = found.has(row[LABEL]) ? row[LABEL] : names[names.length - 1];
    }
    $("name").textContent = row[NAME];
    const links = row[LINKS].map((url, n) => [url, n ? "Result" : "Source"]).filter(([url, n]) => url && !(n === "Result" && row[STATE] === "failed")).map(([url, word]) => {
      const link = make("a", "", word);
      link.href = url;
      link.target = "_blank";
      link.rel = "noreferrer";
      return link;
    });
    const gallery = data.galleries[row[GALLERY]];
    if (row[LINKS].some((url) => url && SHOWN.test(url)) && !(gallery && gallery.window && gallery.window[2] === gallery.size[0] && gallery.window[3] === gallery.size[1]) && row[STATE] !== "failed") {
      const button = make("button", "", "Show the whole pictures");
      button.type = "button";
      button.addEventListener("click", () => { whole = true; mode = "slider"; redraw(fit); });
      links.push(button);
    }
    $("links").replaceChildren(...links);
    const index = chosen.indexOf(row);
    $("previous").disabled = index <= 0;
    $("next").disabled = index < 0 || index >= chosen.length - 1;
    if (!viewer.open) viewer.showModal();
    redraw(() => reset(one()));
    stage.focus({ preventScroll: true });
  }

  function redraw(then) { draw(); measure(then); }

  function step(by) {
    const index = chosen.indexOf(current) + by;
    if (index >= 0 && index < chosen.length) show(chosen[index]);
  }

  function choose(wanted) {
    const was = mode;
    mode = wanted;
    redraw(was === "map" || wanted === "map" ? (wanted === "map" ? fit : () => reset(one())) : place);
  }

  for (const input of document.getElementsByName("mode")) input.addEventListener("change", () => choose(input.value));
  for (const side of ["left", "right"]) $(side).addEventListener("change", () => redraw(place));
  $("close").addEventListener("click", () => viewer.close());
  $("in").addEventListener("click", () => zoom(2));
  $("out").addEventListener("click", () => zoom(0.5));
  $("one").addEventListener("click", () => reset(one()));
  $("fit").addEventListener("click", fit);
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  slider.addEventListener("slide", () => slider.setAttribute("aria-valuenow", Math.round(slider.value)));
  new ResizeObserver(() => { if (viewer.open) place(); }).observe(stage);

  const overHandle = (event) => {
    if (slider.hidden) return false;
    const { left, width, top, height } = slider.getBoundingClientRect();
    return Math.abs(event.clientX - left - width * slider.value / 100) < 32 && Math.abs(event.clientY - top - height / 2) < 24;
  };
  const pointers = new Map();
  stage.addEventListener("pointerdown", (event) => {
    if (event.button || overHandle(event)) return;
    pointers.set(event.pointerId, event);
    stage.setPointerCapture(event.pointerId);
    stage.classList.add("dragging");
  });
  stage.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const other = [...pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId);
    if (other) { // two fingers: their distance zooms
      const apart = (pointer) => Math.hypot(pointer.clientX - other.clientX, pointer.clientY - other.clientY);
      zoom(apart(event) / Math.max(apart(before), 1), { clientX: (event.clientX + other.clientX) / 2, clientY: (event.clientY + other.clientY) / 2 });
    } else {
      view.x += event.clientX - before.clientX;
      view.y += event.clientY - before.clientY;
      place();
    }
    pointers.set(event.pointerId, event);
  });
  for (const kind of ["pointerup", "pointercancel"]) stage.addEventListener(kind, (event) => {
    pointers.delete(event.pointerId);
    if (!pointers.size) stage.classList.remove("dragging");
  });
  stage.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), event); }, { passive: false });

  const keys = {
    "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5), 1: () => reset(one()), 0: fit,
    PageDown: () => step(1), PageUp: () => step(-1), s: () => choose("slider"), r: () => choose("residual"), e: () => choose("map"),
  };
  const arrows = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const arrow = arrows[event.key], act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (arrow && (event.shiftKey || event.key === "ArrowUp" || event.key === "ArrowDown") && event.target.type !== "radio") {
      view.x += 64 * arrow[0];
      view.y += 64 * arrow[1];
      place();
    } else if (arrow && (event.target === stage || event.target === slider) && !slider.hidden) {
      slider.value = Math.min(100, Math.max(0, Number(slider.value) - 2 * arrow[0]));
      slider.dispatchEvent(new Event("slide"));
    } else if (act && event.target.type !== "search") act();
    else return;
    event.preventDefault();
    if (event.shiftKey && arrow) event.stopPropagation();
  }, true);

  arrange();
  document.documentElement.dataset.ready = "true";
})();
