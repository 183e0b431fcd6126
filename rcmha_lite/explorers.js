// Interactive figures with no kernel: each computes bars from its data and its controls, as explorers.py does.
window.rcmhaExplorers ??= {
  "attention-map": (data, { head, query }) => ({
    bars: data.weights[head][query], labels: data.tokens, marked: query,
    text: `Query ${query} sees ${query + 1} ${query ? "keys" : "key"}`,
  }),

  "kernel-taps": (data, { before_last, last, current }) => {
    const taps = [before_last, last, current];
    const bars = data.signal.map((_, t) => taps.reduce((sum, w, s) => sum + w * (data.signal[t - 2 + s] ?? 0), 0));
    return { bars, behind: data.signal, labels: data.signal.map((_, t) => `${t}`),
             text: `y[t] = ${before_last}·x[t−2] + ${last}·x[t−1] + ${current}·x[t]` };
  },

  "relative-score": (data, { query, pairs }) => {
    const bars = data.distances.map(d => data.frequencies.slice(0, pairs).reduce((sum, w, m) =>
      sum + data.sine[query][m] * Math.sin(d * w) + data.cosine[query][m] * Math.cos(d * w), 0));
    const best = bars.indexOf(Math.max(...bars));
    return { bars, labels: data.distances.map(String), marked: best, text: `Highest at distance ${data.distances[best]}` };
  },

  "temperature": (data, { temperature, top_k }) => {
    const largest = Math.max(...data.logits);
    const weights = data.logits.map(z => Math.exp((z - largest) / temperature));
    const order = weights.map((_, n) => n).sort((a, b) => weights[b] - weights[a] || a - b).slice(0, top_k);
    const total = order.reduce((sum, n) => sum + weights[n], 0);
    const bars = weights.map((w, n) => (order.includes(n) ? w / total : 0));
    const nats = bars.reduce((sum, p) => (p > 0 ? sum - p * Math.log(p) : sum), 0);
    return { bars, labels: data.characters, marked: order[0], text: `Entropy ${nats.toFixed(2)} nats` };
  },
};

window.rcmhaExplore ??= figure => {
  const name = figure.dataset.name, data = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
  const inputs = [...figure.querySelectorAll("input")], svg = figure.querySelector("svg");
  const width = 640, height = 240, foot = 24;
  const shape = (tag, attributes, text = "") => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
    node.textContent = text;
    return svg.appendChild(node);
  };
  const draw = () => {
    const values = Object.fromEntries(inputs.map(input => [input.name, Number(input.value)]));
    inputs.forEach(input => { input.nextElementSibling.textContent = input.value; });
    const { bars, behind = [], labels, marked = -1, text } = window.rcmhaExplorers[name](data, values);
    const all = [...bars, ...behind, 0], low = Math.min(...all), high = Math.max(...all, low + 1e-9);
    const y = v => 8 + (height - foot - 16) * (high - v) / (high - low);
    const step = width / bars.length, every = Math.ceil(bars.length / 32);
    svg.replaceChildren();
    const bar = (v, n, share, style) => shape("rect", { x: step * (n + (1 - share) / 2), width: step * share,
      y: Math.min(y(v), y(0)), height: Math.max(Math.abs(y(v) - y(0)), 0.5), style });
    behind.forEach((v, n) => bar(v, n, 0.9, "fill: currentColor; opacity: 0.18"));
    bars.forEach((v, n) => bar(v, n, behind.length ? 0.45 : 0.8,
      `fill: var(--explorer-${n === marked ? "accent, #d55e00" : "mark, #0072b2"})`));
    shape("line", { x1: 0, x2: width, y1: y(0), y2: y(0), stroke: "currentColor" });
    labels.forEach((label, n) => n % every || shape("text", { x: step * (n + 0.5), y: height - 6,
      "text-anchor": "middle", "font-size": 13, style: "fill: currentColor" }, label));
    const peak = bars.reduce((best, v, n) => (v > bars[best] ? n : best), 0);
    const summary = `${text}; largest bar ${labels[peak]}: ${bars[peak].toFixed(3)}`;
    svg.setAttribute("aria-label", summary);
    figure.querySelector(".summary").textContent = summary;
  };
  inputs.forEach(input => input.addEventListener("input", draw));
  draw();
};

// A notebook may run this script away from its figure, so it looks for the figures that are not drawn yet.
document.querySelectorAll("figure.explorer:not([data-drawn])").forEach(figure => {
  figure.dataset.drawn = "yes";
  window.rcmhaExplore(figure);
});
