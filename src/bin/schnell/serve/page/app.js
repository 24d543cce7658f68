// The page of `schnell serve`: asks for pictures as any client does, by POST /v1/images/generations with "stream": true.
"use strict";

const $ = (id) => document.getElementById(id);
// Pictures that the gallery holds; the oldest goes when another comes.
const MOST = 48;
const KEY = "schnell-api-key";

let model = null;
// Of what is being drawn: stops it, since the server stops what nobody waits for.
let running = null;

function headers() {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

/** What a refusal says; `param` is the field at fault. */
class Refused extends Error {
  constructor(error) {
    super(error.message);
    this.param = error.param;
    this.code = error.code;
  }
}

async function refusal(response) {
  const text = await response.text();
  try {
    return new Refused(JSON.parse(text).error);
  } catch {
    return new Refused({ message: `the server answered ${response.status}`, param: null, code: null });
  }
}

async function askModel() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (!response.ok) throw await refusal(response);
  model = (await response.json()).data[0];
  const about = model.schnell;
  const [width, height] = about.size.split("x");
  $("model").textContent = `draws with ${model.id}`;
  for (const [id, value] of [["width", width], ["height", height], ["steps", about.steps]]) {
    if (!$(id).value) $(id).value = value;
  }
  $("steps").max = about.max_steps;
  $("count").max = about.max_n;
  $("prompt").maxLength = about.max_prompt;
  $("negative-field").hidden = !about.negative_prompts;
  $("guidance-field").hidden = !about.guidance;
  if (model.id === "demo" && !$("prompt").value) {
    $("prompt").placeholder = "a small red star left of a big blue ring on a yellow background";
  }
}

/** The form, as a request. */
function settings() {
  const number = (id) => Number($(id).value);
  const asked = {
    prompt: $("prompt").value,
    size: `${number("width")}x${number("height")}`,
    steps: number("steps"),
    n: number("count"),
  };
  if ($("seed").value !== "") asked.seed = number("seed");
  if (!$("negative-field").hidden && $("negative").value.trim()) {
    asked.negative_prompt = $("negative").value;
    asked.true_cfg_scale = number("cfg");
  }
  if (!$("guidance-field").hidden) asked.guidance = number("guidance");
  return asked;
}

/** Fills the form. */
function use(asked) {
  const [width, height] = asked.size.split("x");
  const values = { prompt: asked.prompt, width, height, steps: asked.steps, count: 1, seed: asked.seed };
  for (const [id, value] of Object.entries(values)) $(id).value = value;
  $("negative").value = asked.negative_prompt ?? "";
  if (asked.true_cfg_scale) $("cfg").value = asked.true_cfg_scale;
  if (asked.guidance !== undefined) $("guidance").value = asked.guidance;
}

/** Events of a response's body, one after the other. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    let end;
    while ((end = rest.indexOf("\n\n")) >= 0) {
      const lines = rest.slice(0, end).split("\n");
      rest = rest.slice(end + 2);
      const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}

/** Draws what is asked for; `drawn` is called for each picture. */
async function draw(asked, signal, drawn) {
  const response = await fetch("/v1/images/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers() },
    body: JSON.stringify({ ...asked, stream: true, partial_images: asked.steps, output_format: "png" }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  let hasEnded = 0;
  for await (const event of events(response.body)) {
    switch (event.type) {
      case "image_generation.completed":
        hasEnded += 1;
        drawn(event);
        break;
      case "image_generation.partial_image":
        preview(event);
        break;
      case "error":
        throw new Refused(event.error);
      default:
        progress(event, asked.n ?? 1);
    }
  }
  if (hasEnded < (asked.n ?? 1)) throw new Error("the connection ended before the picture was there");
}

/** A link to what an event holds, until it is revoked. */
function link(event) {
  const bytes = Uint8Array.from(atob(event.b64_json), (c) => c.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: `image/${event.output_format ?? "png"}` }));
}

// What is in the middle when nothing is being drawn.
let settled = null;
let lastPreview = null;

/** What a picture looks like so far, where the server tells. */
function preview(event) {
  const url = link(event);
  put(url, "What the picture looks like so far", event.size);
  if (lastPreview) URL.revokeObjectURL(lastPreview);
  lastPreview = url;
}

/** In place of what a picture looked like that is drawn no more. */
function settle() {
  if (!lastPreview) return;
  if (settled) put(settled.url, settled.alt, settled.size);
  $("shown").hidden = !settled;
  $("idle").hidden = Boolean(settled);
  URL.revokeObjectURL(lastPreview);
  lastPreview = null;
}

function progress(event, n) {
  const which = n > 1 && event.index !== undefined ? `Picture ${event.index + 1} of ${n}: ` : "";
  const bar = $("progress");
  if (event.type === "image_generation.queued") {
    bar.removeAttribute("value");
    say(event.ahead ? `Waiting: ${event.ahead} before it.` : "Waiting.");
  } else if (event.stage === "text") {
    bar.removeAttribute("value");
    say(`${which}reading the prompt…`);
  } else if (event.stage === "step") {
    // The step that is told of has just been begun; the decoder is about as long.
    bar.value = (event.step - 1) / (event.steps + 1);
    say(`${which}step ${event.step} of ${event.steps}…`);
  } else if (event.stage === "decoding") {
    bar.value = 0.9;
    say(`${which}decoding…`);
  }
}

function say(text) {
  $("status").textContent = text.charAt(0).toUpperCase() + text.slice(1);
}

/** The picture in the middle, which stays there. */
function show(url, alt, size) {
  settled = { url, alt, size };
  put(url, alt, size);
}

function put(url, alt, size) {
  const image = $("shown");
  image.src = url;
  image.alt = alt;
  image.hidden = false;
  $("idle").hidden = true;
  $("stage").classList.toggle("small", Number(size.split("x")[0]) < 256);
}

/** Runs one thing at a time, with the form's buttons as they have to be. */
async function busy(work) {
  if (running) return;
  running = new AbortController();
  $("draw").disabled = true;
  $("cancel").disabled = false;
  for (const button of document.querySelectorAll(".again")) button.disabled = true;
  fault("");
  const bar = $("progress");
  bar.hidden = false;
  bar.removeAttribute("value");
  say("Asking…");
  // On a narrow screen it is below the form.
  bar.closest("section").scrollIntoView({ block: "nearest" });
  try {
    await work(running.signal);
  } catch (error) {
    if (error.name === "AbortError") {
      say("Cancelled.");
    } else {
      say("Nothing is being drawn.");
      fault(error.message, error.param);
      if (error.code === "invalid_api_key") {
        $("key-details").open = true;
        $("key").focus();
      }
    }
  } finally {
    running = null;
    settle();
    bar.hidden = true;
    $("draw").disabled = false;
    $("cancel").disabled = true;
    for (const button of document.querySelectorAll(".again")) button.disabled = false;
  }
}

const FIELDS = { prompt: "prompt", size: "width", steps: "steps", n: "count", seed: "seed", negative_prompt: "negative" };

function fault(text, param) {
  $("error").textContent = text ? text.charAt(0).toUpperCase() + text.slice(1) + "." : "";
  for (const id of Object.values(FIELDS)) $(id).removeAttribute("aria-invalid");
  const field = FIELDS[param];
  if (field) {
    $(field).setAttribute("aria-invalid", "true");
    $(field).focus();
  }
}

/** A card in the gallery. */
function keep(asked, event) {
  const url = link(event);
  const about = event.schnell;
  // What draws this one again.
  const exact = { ...asked, seed: about.seed, size: about.size, n: 1 };
  const card = $("card").content.cloneNode(true).firstElementChild;
  const image = card.querySelector("img");
  image.src = url;
  image.alt = `Drawn for: ${asked.prompt}`;
  card.classList.toggle("small", Number(about.size.split("x")[0]) < 256);
  card.querySelector(".prompt").textContent = asked.prompt;
  const ms = Object.values(about.timings_ms).reduce((sum, ms) => sum + ms, 0);
  const parts = [`seed ${about.seed}`, about.size.replace("x", " × "), `${about.steps} steps`, `${(ms / 1000).toFixed(2)}\u00a0s`];
  if (asked.negative_prompt) parts.push(`away from “${asked.negative_prompt}” (${asked.true_cfg_scale})`);
  if (asked.guidance !== undefined) parts.push(`guidance ${asked.guidance}`);
  card.querySelector(".settings").textContent = parts.join(" · ").replace("1 steps", "1 step");
  const warnings = card.querySelector(".warnings");
  warnings.textContent = about.warnings.join("; ");
  warnings.hidden = about.warnings.length === 0;
  const download = card.querySelector(".download");
  download.href = url;
  download.download = `schnell-${about.seed}.png`;
  download.setAttribute("aria-label", `Download the picture of seed ${about.seed}, with its settings in the file`);
  card.querySelector(".use").addEventListener("click", () => {
    use(exact);
    $("prompt").focus();
    say("The form has the picture’s settings.");
  });
  card.querySelector(".again").addEventListener("click", () => reproduce(exact, about.receipt, card));
  const list = card.querySelector("dl");
  for (const [name, value] of Object.entries(about.receipt)) {
    if (!value) continue;
    list.append(Object.assign(document.createElement("dt"), { textContent: name }));
    list.append(Object.assign(document.createElement("dd"), { textContent: value }));
  }
  const gallery = $("gallery");
  gallery.prepend(card);
  if (gallery.children.length > MOST) {
    URL.revokeObjectURL(gallery.lastElementChild.querySelector("img").src);
    gallery.lastElementChild.remove();
  }
  $("none").hidden = true;
  show(url, image.alt, about.size);
}

/** Draws it again and compares. */
function reproduce(exact, there, card) {
  const verdict = card.querySelector(".verdict");
  verdict.className = "verdict";
  verdict.textContent = "Drawing it again…";
  return busy(async (signal) => {
    try {
      await draw(exact, signal, (event) => {
        const here = event.schnell.receipt;
        const differing = ["model", "latents", "pixels"].filter((name) => there[name] !== here[name]);
        const isSame = differing.length === 0;
        verdict.classList.add(isSame ? "same" : "differs");
        verdict.textContent = isSame ? "The same, to the bit." : `Differs in its ${differing.join(", ")}.`;
      });
      say("Drawn again.");
    } catch (error) {
      verdict.textContent = "";
      throw error;
    }
  });
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const asked = settings();
  if (!asked.prompt.trim() && $("prompt").placeholder) {
    asked.prompt = $("prompt").value = $("prompt").placeholder;
  }
  busy(async (signal) => {
    if (!model) await askModel();
    await draw(asked, signal, (drawn) => keep(asked, drawn));
    say("Done.");
  });
});

$("cancel").addEventListener("click", () => {
  if (!running) return;
  running.abort();
  $("draw").disabled = false;
  $("draw").focus();
});

$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});

$("key").value = sessionStorage.getItem(KEY) ?? "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem(KEY, $("key").value.trim());
  fault("");
  askModel().catch((error) => fault(error.message));
});

askModel().catch((error) => {
  $("model").textContent = "";
  fault(error.message);
  if (error.code === "invalid_api_key") $("key-details").open = true;
});
