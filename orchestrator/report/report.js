// Draws each figure of the page with Plotly, in the colours of the theme, and again when the theme changes.
"use strict";

const CONFIG = {
  responsive: true,
  displaylogo: false,
  // Without a pointer that hovers, the buttons would stand over the chart for ever.
  displayModeBar: matchMedia("(hover: none)").matches ? false : "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
  showSendToCloud: false,
  plotlyServerURL: "",
};

function themed(value, style) {
  if (typeof value === "string") return value.startsWith("--") ? style.getPropertyValue(value).trim() : value;
  if (Array.isArray(value)) return value.map((item) => themed(item, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, themed(item, style)]));
}

function axis(options) {
  return {
    automargin: true,
    gridcolor: "--grid",
    zerolinecolor: "--axis",
    linecolor: "--axis",
    exponentformat: "e",
    hoverformat: ".4~g",
    ...options,
  };
}

function layout(figure, font) {
  return {
    font: { family: font, size: 12, color: "--soft" },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 8, r: 8, t: 8, b: 8 },
    dragmode: "zoom",
    hovermode: "x unified",
    hoverlabel: { bgcolor: "--card", bordercolor: "--edge", font: { color: "--text" } },
    modebar: { bgcolor: "--card", color: "--soft", activecolor: "--text" },
    legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", traceorder: "normal", font: { color: "--text" } },
    ...figure.layout,
    xaxis: axis({
      showgrid: false,
      zeroline: false,
      nticks: 8,
      title: { text: "step", standoff: 2, font: { size: 11 } },
      unifiedhovertitle: { text: "step %{x}" },
      ...figure.layout.xaxis,
    }),
    yaxis: axis({ nticks: 6, ...figure.layout.yaxis }),
    ...(figure.layout.yaxis2 && { yaxis2: axis({ nticks: 6, ...figure.layout.yaxis2 }) }),
  };
}

function drawFigure(place, figure) {
  const style = getComputedStyle(document.documentElement);
  const font = getComputedStyle(document.body).fontFamily;
  const config = { ...CONFIG, toImageButtonOptions: { filename: place.dataset.title, scale: 2 } };
  return Plotly.react(place, themed(figure.data, style), themed(layout(figure, font), style), config);
}

function draw() {
  for (const data of document.querySelectorAll('.plot + script[type="application/json"]')) {
    drawFigure(data.previousElementSibling, JSON.parse(data.textContent));
  }
}

draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
