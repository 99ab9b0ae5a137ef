// page.js: a conversation with the model over /v1/chat/completions.
import { markdown } from "./markdown.js";

const $ = (id) => document.getElementById(id);
const [messages, question, settings] = [$("messages"), $("question"), $("settings")];
const kept = ["system", "temperature", "top_p", "max_tokens", "seed"]; // not the key

let conversation = []; // of {role, content}
let running = null; // the AbortController of an answer

const headers = () => {
  const key = settings.elements.key.value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
};

const failure = async (answer) => {
  const text = await answer.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return `${answer.status}: ${text.slice(0, 200)}`;
  }
};

const show = (role, text) => {
  const e = document.createElement("div");
  e.className = `message ${role}`;
  e.textContent = text;
  messages.append(e);
  messages.scrollTop = messages.scrollHeight;
  return e;
};

const request = () => {
  const value = (name) => settings.elements[name].value;
  const system = value("system").trim();
  const body = { stream: true, stream_options: { include_usage: true },
    messages: [...(system ? [{ role: "system", content: system }] : []), ...conversation] };
  for (const name of kept.slice(1)) {
    if (value(name) !== "") body[name] = Number(value(name));
  }
  return JSON.stringify(body);
};

// events yields the data of the server-sent events of an answer.
const events = async function* (answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
};

// drawer returns a function that shows markdown, at most once per frame.
const drawer = (target) => {
  let text = null;
  return (now) => {
    if (text === null) {
      requestAnimationFrame(() => {
        const low = messages.scrollHeight - messages.scrollTop - messages.clientHeight < 60;
        target.replaceChildren(...markdown(text));
        text = null;
        if (low) messages.scrollTop = messages.scrollHeight;
      });
    }
    text = now;
  };
};

const answer = async () => {
  running = new AbortController();
  $("send").textContent = "Stop";
  $("status").textContent = "reading …";
  const target = show("assistant", "");
  const mine = conversation; // "New chat" begins another
  const draw = drawer(target);
  const began = performance.now();
  let [thought, text, first, usage, wrong] = ["", "", 0, null, ""];
  try {
    const reply = await fetch("v1/chat/completions", { method: "POST", headers: headers(),
      body: request(), signal: running.signal });
    if (!reply.ok) throw new Error(await failure(reply));
    for await (const event of events(reply)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const delta = event.choices[0]?.delta ?? {};
      if (!delta.content && !delta.reasoning_content) continue;
      first ||= performance.now();
      thought += delta.reasoning_content ?? "";
      text += delta.content ?? "";
      const quoted = thought && thought.replace(/^/gm, "> ") + "\n\n";
      draw(quoted + text);
      $("status").textContent = text ? "answering …" : "thinking …";
    }
  } catch (error) {
    wrong = error.name === "AbortError" ? "" : error.message;
  }
  running = null;
  $("send").textContent = "Send";
  if (conversation !== mine) return;
  if (wrong !== "") show("wrong", wrong);
  if (text === "" && thought === "") target.remove();
  if (text !== "") conversation.push({ role: "assistant", content: text });
  else question.value = conversation.pop().content; // ask again
  const seconds = (performance.now() - first) / 1000;
  $("status").textContent = !usage ? (wrong ? "" : "stopped") :
    `${usage.prompt_tokens} tokens read, ${usage.completion_tokens} written, first after ` +
    `${((first - began) / 1000).toFixed(2)} s, ` +
    `${(Math.max(0, usage.completion_tokens - 1) / seconds).toFixed(1)} per second`;
};

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) {
    running.abort();
    return;
  }
  const text = question.value.trim();
  if (text === "") return;
  question.value = "";
  grow();
  conversation.push({ role: "user", content: text });
  show("user", text);
  answer();
});

question.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    if (!running) $("ask").requestSubmit();
  }
});

const grow = () => {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight + 2}px`;
};
question.addEventListener("input", grow);

$("fresh").addEventListener("click", () => {
  running?.abort();
  conversation = [];
  messages.replaceChildren();
  $("status").textContent = "";
  question.focus();
});

$("open").addEventListener("click", () => {
  settings.hidden = !settings.hidden;
  $("open").setAttribute("aria-expanded", String(!settings.hidden));
});

for (const name of kept) {
  settings.elements[name].value = localStorage.getItem(`conquer.${name}`) ?? "";
}
settings.addEventListener("input", () => {
  for (const name of kept) localStorage.setItem(`conquer.${name}`, settings.elements[name].value);
});
settings.addEventListener("submit", (event) => event.preventDefault());

const name = async () => {
  try {
    const reply = await fetch("v1/models", { headers: headers() });
    if (reply.status === 401) {
      settings.hidden = false;
      $("status").textContent = "This server needs an API key.";
    }
    if (reply.ok) {
      $("model").textContent = document.title = (await reply.json()).data[0].id;
      $("status").textContent = "";
    }
  } catch (error) {
    $("status").textContent = error.message;
  }
};
settings.elements.key.addEventListener("change", name);
name();
