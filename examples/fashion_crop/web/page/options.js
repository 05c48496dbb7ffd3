// The form of options: what to look for, which needs the server, and how crops are rendered, which does not.

import {$} from "./dom.js";
import {TYPES} from "./crops.js";

const NUMBERS = ["box_threshold", "text_threshold", "nms_threshold", "padding"];
const CHOICES = ["aspect", "format"];
const ASKED = 0.25;  // a lower threshold than most people want, so that less strictness needs no new request

const form = $("options");

// Returns the options as the service names them, with those of `Rendering` apart.
export function read() {
  const {background, aspect, format, prompts} = form.elements;
  const number = (name) => Number($(name).value);
  const colour = background.value === "colour" ? $("colour").value : background.value;
  return {
    prompts: prompts.value.replace(/[\r\n]+/g, ","),
    box_threshold: number("box_threshold"),
    text_threshold: number("text_threshold"),
    nms_threshold: number("nms_threshold"),
    rendering: {
      padding: number("padding"),
      background: format.value === "jpeg" && colour === "transparent" ? "white" : colour,
      aspect: aspect.value,
      format: format.value,
    },
  };
}

// Returns what to ask the server for: garments below the strictness too, which are there when less of it is wanted.
export function toAsk() {
  const options = read();
  return {...options, box_threshold: Math.min(options.box_threshold, ASKED)};
}

// Returns the garments of a photo's answer whose score is at least the strictness.
export function strictEnough({answer}) {
  const least = Number($("box_threshold").value);
  return answer ? answer.garments.filter(({score}) => score >= least) : [];
}

export function setDefaults({defaults, rendering = {}}) {
  const all = {...defaults, ...rendering};
  $("prompts").value = all.prompts.join(", ");
  for (const name of NUMBERS) $(name).value = all[name];
  const isColour = all.background.startsWith("#");
  if (isColour) $("colour").value = all.background;
  form.elements.background.value = isColour ? "colour" : all.background;
  for (const name of CHOICES) if (all[name]) form.elements[name].value = all[name];
  showValues();
}

export function enable(info) {
  setDefaults(info);
  $("fields").disabled = false;
}

export function showValues() {
  for (const name of NUMBERS) $(`${name}-value`).textContent = Number($(name).value).toFixed(2);
  const {background, format} = form.elements;
  $("colour-label").hidden = background.value !== "colour";
  $("format-note").textContent = format.value === "jpeg" && background.value === "transparent"
    ? "JPEG has no transparency: the background is white." : "";
}

export function showProblem(field, message) {
  const place = $(`${field}-problem`);
  if (!place) return;
  place.textContent = message;
  $(field)?.setAttribute("aria-invalid", String(Boolean(message)));
  for (let each = message && place; each; each = each.parentElement.closest("details")) each.open = true;
}

export function hideProblems() {
  for (const each of form.querySelectorAll(".problem")) showProblem(each.id.replace("-problem", ""), "");
}

// Safari writes no WebP, and makes a PNG instead.
export function offerWritableFormats() {
  const canvas = document.createElement("canvas");
  for (const [format, type] of Object.entries(TYPES)) {
    if (canvas.width && canvas.toDataURL(type).startsWith(`data:${type}`)) continue;
    const input = form.querySelector(`[name=format][value=${format}]`);
    input.disabled = true;
    input.parentElement.title = "This browser cannot write it";
  }
}
